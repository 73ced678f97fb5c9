"""What is installed is what was resolved: every pin has a hash, and set-up accepts nothing without one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rooms import ROOT

LOCKS = [ROOT / "requirements.lock", *sorted((ROOT / "locks").glob("*.lock"))]


def pins(lock: Path) -> list[str]:
    """The requirements of a lock, each with its continuation lines in one string."""
    text = "\n".join(line for line in lock.read_text().splitlines() if not line.lstrip().startswith("#"))
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_pin_has_a_hash(lock: Path) -> None:
    found = pins(lock)
    assert found
    assert [pin for pin in found if not re.match(r"[\w.\-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", pin)] == []


def test_set_up_installs_nothing_without_a_hash() -> None:
    script = (ROOT / "scripts/setup.sh").read_text()
    installs = [line.strip() for line in script.splitlines() if re.search(r"\bpip install\b", line)]
    assert len(installs) >= 4
    # The project itself and its weights come from this folder, are built with what is installed already, and bring
    # nothing along.
    ours = [line for line in installs if " -e ." in line or " ./packages/weights" in line]
    assert len(ours) == 2
    for line in ours:
        assert "--no-deps" in line
        assert "--no-build-isolation" in line
    others = [line for line in installs if line not in ours]
    assert [line for line in others if "--require-hashes" not in line] == []
    named = {name for line in others for name in re.findall(r"-r (\S+\.lock)", line)}
    assert named == {"requirements.lock", "locks/setup.lock", "locks/services.lock", "locks/annoy.lock"}


def test_set_up_runs_again_when_a_lock_changes() -> None:
    rule = re.search(r"^\$\(READY\):(.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert rule is not None
    assert {"requirements.lock", "locks/setup.lock", "locks/annoy.lock"} <= set(rule[1].split())
