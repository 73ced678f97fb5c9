"""Where the project's own modules lie, for the tests that read them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["ROOT", "ROOTS", "modules"]

ROOT = Path(__file__).resolve().parents[1]
ROOTS = ("client", "indexer", "server", "shared")


def modules() -> dict[str, Path]:
    """All modules below the four roots, by name."""
    found = {}
    for root in ROOTS:
        for file in sorted((ROOT / root / "cbir").rglob("*.py")):
            parts = file.relative_to(ROOT / root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found
