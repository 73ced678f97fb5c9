"""How much memory this process may still take, and how its allocator keeps what is freed."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from cbir.core.machine.hardware import cores

__all__ = ["available_bytes", "share_arenas"]

#: Limit and use of a container's memory, of both generations of control groups.
_GROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
#: The parameter's number in glibc's ``malloc.h``; musl has no such function.
_M_ARENA_MAX = -8


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


def share_arenas() -> None:
    """Let glibc keep one arena of freed memory a core, at least two, in place of eight a core.

    A server's threads come and go, those that load versions above all, and what one of them has freed is of no use to
    a thread with another arena: with every reload a little more memory would be held.  Call this where a program
    starts.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_ARENA_MAX, max(2, cores()))
