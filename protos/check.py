"""Lint the API and compare it with its baseline: ``python protos/check.py [--accept]``.

Needs buf (``npm ci --ignore-scripts`` in this folder; ``make proto`` does it).  ``--accept`` makes the API as it is
now the baseline: after a release, so that what it added is held to as well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from generate import PROTOS, describe

BUF = PROTOS / "node_modules" / ".bin" / "buf"
BASELINE = PROTOS / "baseline.binpb"


def check() -> int:
    """Print what buf has to say about this folder; 0: nothing."""
    # Given no other input than the folder, buf also proves that it compiles alone.
    lint = subprocess.run([BUF, "lint", PROTOS], check=False).returncode
    breaking = subprocess.run([BUF, "breaking", PROTOS, "--against", BASELINE], check=False).returncode
    return lint or breaking


def main() -> int:
    """Check the API, or accept it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accept", action="store_true", help="make the API as it is now the baseline")
    if parser.parse_args().accept:
        describe(BASELINE)
        return 0
    if not BUF.exists():
        sys.stderr.write("buf is not installed: run `npm ci --ignore-scripts` in protos/\n")
        return 1
    return check()


if __name__ == "__main__":
    sys.exit(main())
