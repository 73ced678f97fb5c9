"""Lint the API and compare it with its baseline: ``python protos/check.py [--accept]``.

Needs buf (``npm ci --ignore-scripts`` in this folder; ``make proto`` does it).  ``--accept`` makes the API as it is
now the baseline: after a release, so that what it added is held to as well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from generate import PROTOS, describe

BUF = PROTOS / "node_modules" / ".bin" / "buf"
BASELINE = PROTOS / "baseline.binpb"


def check(api: Path) -> int:
    """Print what buf has to say about a descriptor set; 0: nothing."""
    config = ["--config", str(PROTOS / "buf.yaml")]
    lint = subprocess.run([BUF, "lint", api, *config], check=False).returncode
    breaking = subprocess.run([BUF, "breaking", api, "--against", BASELINE, *config], check=False).returncode
    return lint or breaking


def main() -> int:
    """Compile the API, then check it or accept it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accept", action="store_true", help="make the API as it is now the baseline")
    if parser.parse_args().accept:
        describe(BASELINE)
        return 0
    if not BUF.exists():
        sys.stderr.write("buf is not installed: run `npm ci --ignore-scripts` in protos/\n")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        api = Path(folder) / "api.binpb"
        describe(api)
        return check(api)


if __name__ == "__main__":
    sys.exit(main())
