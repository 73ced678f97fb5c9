"""Make what tests share importable by every test, whatever the import mode: helpers here, and what reads the house."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "scripts")]
