"""How late the event loop is: what everything that the loop should do has to wait for."""

from __future__ import annotations

import asyncio
from time import monotonic

from cbir.server.queue import Histogram

__all__ = ["LoopLag"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class LoopLag:
    """Asks to be woken at fixed times, and notes by how much each time was missed.

    Args:
        every: Seconds between two times.
    """

    def __init__(self, every: float = 0.25) -> None:
        self._every = every
        self._task: asyncio.Task[None] | None = None
        self.lateness = Histogram(_SECONDS)
        #: Seconds by which the last time was missed.
        self.last = 0.0

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._task = asyncio.create_task(self._watch())

    def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        while True:
            due = monotonic() + self._every
            await asyncio.sleep(self._every)
            self.last = max(0.0, monotonic() - due)
            self.lateness.add(self.last)
