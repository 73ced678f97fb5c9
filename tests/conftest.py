"""Make what tests share importable by every test, whatever the import mode; the option ``--precision``.

Helpers lie here, and in scripts what reads the house.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes is the machine's affair, and no test is timed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "scripts")]

#: What the header of the test run says of a forced precision.
_said = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--precision f32`` or ``--precision bf16`` forces what OpenVINO computes in."""
    parser.addoption(
        "--precision", choices=("f32", "bf16"), default=None, help="what OpenVINO computes in (default: auto)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Force the precision in this process, and in those that tests start, where the processor has it."""
    wanted = config.getoption("--precision")
    if wanted is None:
        return
    from cbir.core.ensemble.runtime.choice import FORCED
    from cbir.core.ensemble.runtime.openvino import openvino_core

    if wanted == "bf16" and "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        from emulated_bf16 import emulate

        patches = pytest.MonkeyPatch()
        emulate(patches)
        config.add_cleanup(patches.undo)
        config.stash[_said] = (
            "precision: bf16, which this processor does not have: it is emulated (the factors of products are rounded "
            "to 8 bits), in this process only; programs that tests start compute in float32"
        )
    else:
        os.environ[FORCED] = wanted
        config.stash[_said] = f"precision: OpenVINO is forced to {wanted}, here and in the programs that tests start"


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what was forced, and whether it was real."""
    return config.stash.get(_said, None)
