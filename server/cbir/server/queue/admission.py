"""Admission: a bounded amount of work is let in; the rest is told when to come again, or waits for its turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from cbir.core.errors import CbirError

__all__ = ["Admission", "NotReadyError", "OverloadedError"]

_SHORTEST_RETRY = 0.05
_LONGEST_RETRY = 60.0

#: One client may hold up to this many times what is unused by anybody.  Alone it gets four fifths of the queue, and a
#: client that comes new always finds some room, however many others send.
#: Source: Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998.
_LANE_TO_FREE = 4.0


class OverloadedError(CbirError):
    """The query cannot be let in: there is no room, or it would not be answered in time.

    Attributes:
        retry_after: Seconds until the work that waits now should be done.
    """

    def __init__(self, message: str, retry_after: float, reason: str = "OVERLOADED") -> None:
        super().__init__(message, reason=reason, retry_after=f"{retry_after:.3f}s")
        self.retry_after = retry_after


class NotReadyError(CbirError):
    """No index is loaded yet, or the server is stopping."""


class Admission:
    """Counts what is admitted and not yet answered.  For one event loop.

    Args:
        most: Most of it at once, in units of cost.
        most_bytes: Most bytes of it at once; one alone may exceed it.
        what: Its name in the refusal, in the plural.
    """

    def __init__(self, most: float, most_bytes: int, what: str) -> None:
        self._most, self._most_bytes, self._what = most, most_bytes, what
        self._turns: deque[tuple[asyncio.Future[None], Hashable, float, int]] = deque()
        self.used = 0.0
        self.used_bytes = 0
        #: Cost that each lane holds.
        self.lanes: dict[Hashable, float] = {}
        self.refused = 0

    def take(self, lane: Hashable, cost: float, size: int, wait: float) -> None:
        """Hold room until :meth:`give_back`.

        Args:
            size: Bytes that are held.
            wait: Seconds until the work that is admitted now should be done.

        Raises:
            OverloadedError: There is none.
        """
        held = self.lanes.get(lane, 0.0)
        if held + cost > _LANE_TO_FREE * (self._most - self.used) or not self._fits(cost, size):
            self.refuse(wait)
        self._hold(lane, cost, size)

    def refuse(self, wait: float) -> None:
        """Say that there is no room.

        Raises:
            OverloadedError: Always.
        """
        self.refused += 1
        wait = min(max(wait, _SHORTEST_RETRY), _LONGEST_RETRY)
        raise OverloadedError(f"the server is busy with {self._what}: try again in {wait:.2f} seconds", wait)

    def is_full(self, cost: float) -> bool:
        """Whether there is no room for anything of this cost, whoever asks."""
        return self.used + cost > self._most

    async def take_in_turn(self, lane: Hashable, cost: float, size: int) -> None:
        """Wait for room and hold it until :meth:`give_back`; who came first gets it first."""
        if not self._turns and self._fits(cost, size):
            self._hold(lane, cost, size)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (turn, lane, cost, size)
        self._turns.append(place)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(lane, cost, size)
            else:
                self._turns.remove(place)
            raise

    def give_back(self, lane: Hashable, cost: float, size: int) -> None:
        """Free what was held."""
        self.used -= cost
        self.used_bytes -= size
        left = self.lanes[lane] - cost
        if left > 0:
            self.lanes[lane] = left
        else:
            del self.lanes[lane]
        while self._turns and self._fits(self._turns[0][2], self._turns[0][3]):
            turn, *_ = place = self._turns.popleft()
            self._hold(*place[1:])
            turn.set_result(None)

    @contextmanager
    def admit(self, lane: Hashable, cost: float, size: int, wait: float) -> Iterator[None]:
        """Hold room while the block runs.

        Raises:
            OverloadedError: There is none.
        """
        self.take(lane, cost, size, wait)
        try:
            yield
        finally:
            self.give_back(lane, cost, size)

    def _fits(self, cost: float, size: int) -> bool:
        if self.used + cost > self._most:
            return False
        return not self.used or self.used_bytes + size <= self._most_bytes

    def _hold(self, lane: Hashable, cost: float, size: int) -> None:
        self.used += cost
        self.used_bytes += size
        self.lanes[lane] = self.lanes.get(lane, 0.0) + cost
