"""How much memory this process may still take."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["available_bytes"]

#: Limit and use of a container's memory, of both generations of control groups.
_GROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process may still take; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    found: list[int] = []
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    group = root / "sys/fs/cgroup"
    for most, used in _GROUP_FILES:
        try:
            found.append(int((group / most).read_text()) - int((group / used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, min(found)) if found else None
