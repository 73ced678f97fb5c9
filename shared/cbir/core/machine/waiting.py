"""Waiting for a core: how much of its time a process could have computed and did not get to."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from time import perf_counter

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

__all__ = ["Waiting", "waited_seconds"]

#: Seconds of waiting a second from which on other programs shared the cores: an idle machine shows a few hundredths,
#: and one other program half a second.
_MUCH = 0.1
#: Where the system does not tell: so often a second a core was lost to others.  Some idle machines show 30 to 60.
_OFTEN = 150


class Waiting:
    """What this process's threads wait for a core from now on; those that end meanwhile are not counted."""

    def __init__(self) -> None:
        self._begun, self._before, self._lost = perf_counter(), waited_seconds(), _times_set_aside()

    def is_much(self) -> bool:
        """Whether it was so much that what was timed meanwhile tells of a shared machine."""
        took = perf_counter() - self._begun
        now = waited_seconds()
        if not now:
            return _times_set_aside() - self._lost > _OFTEN * took
        waited = sum(seconds - self._before.get(thread, 0.0) for thread, seconds in now.items())
        return waited > _MUCH * took


def waited_seconds(process: int | str = "self") -> dict[int, float]:
    """By thread: seconds for which it was ready to run and had no core; empty where the system does not tell."""
    found: dict[int, float] = {}
    for file in Path(f"/proc/{process}/task").glob("*/schedstat"):
        # A thread may have ended since.
        with suppress(OSError, IndexError, ValueError):
            found[int(file.parent.name)] = int(file.read_text().split()[1]) / 1e9
    return found if any(found.values()) else {}


def _times_set_aside() -> int:
    """How often this process has lost its core to another, where the system counts it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource is not None else 0
