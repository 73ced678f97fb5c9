"""Admission: a bounded amount of work is let in; the rest is told when to come again, or waits for its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cbir.core.errors import CbirError
from cbir.server.queue.fair_queue import FairQueue, Lane

__all__ = ["Admission", "NotReadyError", "OverloadedError"]

_SHORTEST_RETRY = 0.05
_LONGEST_RETRY = 60.0

#: One identity may hold up to this many times what is unused by anybody.  Alone it gets four fifths of the queue, and
#: one that comes new always finds some room, however many others send.  Its clients share what it may hold likewise.
#: Source: Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998.
_HELD_TO_FREE = 4.0


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
        self._turns: FairQueue[_Turn] = FairQueue()
        self.used = 0.0
        self.used_bytes = 0
        #: Cost that each identity holds, and each client of it.
        self.held: dict[Hashable, float] = {}
        self._clients: dict[Hashable, dict[Hashable, float]] = {}
        self.refused = 0

    def take(self, lane: Lane, cost: float, size: int, wait: float) -> None:
        """Hold room until :meth:`give_back`.

        Args:
            size: Bytes that are held.
            wait: Seconds until the work that is admitted now should be done.

        Raises:
            OverloadedError: There is none.
        """
        held = self.held.get(lane.identity, 0.0)
        most = _HELD_TO_FREE * (self._most - self.used)
        mine = self._clients[lane.identity].get(lane.client, 0.0) if held else 0.0
        if held + cost > most or mine + cost > _HELD_TO_FREE * (most - held) or not self._fits(cost, size):
            self.refuse(wait)
        self._hold(lane, cost, size)

    def ahead(self, lane: Lane, cost: float) -> float:
        """What of the identity's own work comes before something new of this lane, as its clients take turns."""
        clients = self._clients.get(lane.identity)
        if clients is None:
            return 0.0
        held = clients.get(lane.client, 0.0)
        if len(clients) == 1 and held:
            return held
        mine = held + cost
        return sum(min(held, mine) for held in clients.values())

    def refuse(self, wait: float) -> None:
        """Say that there is no room.

        Raises:
            OverloadedError: Always.
        """
        self.refused += 1
        # In steps, so that a flood gets few different answers, each of which is written once.
        wait = round(min(max(wait, _SHORTEST_RETRY), _LONGEST_RETRY), 2)
        raise OverloadedError(f"the server is busy with {self._what}: try again in {wait:.2f} seconds", wait)

    def is_full(self, cost: float) -> bool:
        """Whether there is no room for anything of this cost, whoever asks."""
        return self.used + cost > self._most

    async def take_in_turn(self, lane: Lane, cost: float, size: int) -> None:
        """Wait for room and hold it until :meth:`give_back`; lanes get it in turn, and in a lane who came first."""
        if not self._turns and self._fits(cost, size):
            self._hold(lane, cost, size)
            return
        turn = _Turn(asyncio.get_running_loop().create_future(), lane, cost, size)
        self._turns.push(lane, turn, cost)
        try:
            await turn.come
        except asyncio.CancelledError:
            if turn.come.done() and not turn.come.cancelled():
                self.give_back(lane, cost, size)
            else:
                self._turns.remove(lane, turn)
            raise

    def give_back(self, lane: Lane, cost: float, size: int) -> None:
        """Free what was held."""
        self.used -= cost
        self.used_bytes -= size
        clients = self._clients[lane.identity]
        _less(clients, lane.client, cost)
        _less(self.held, lane.identity, cost)
        if not clients:
            # Rounding, if any, goes with the last one.
            del self._clients[lane.identity]
            self.held.pop(lane.identity, None)
        while self._turns and self._fits((turn := self._turns.peek()).cost, turn.size):
            self._turns.pop()
            self._hold(turn.lane, turn.cost, turn.size)
            turn.come.set_result(None)

    @contextmanager
    def admit(self, lane: Lane, cost: float, size: int, wait: float) -> Iterator[None]:
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

    def _hold(self, lane: Lane, cost: float, size: int) -> None:
        self.used += cost
        self.used_bytes += size
        self.held[lane.identity] = self.held.get(lane.identity, 0.0) + cost
        clients = self._clients.setdefault(lane.identity, {})
        clients[lane.client] = clients.get(lane.client, 0.0) + cost


@dataclass(frozen=True, eq=False)
class _Turn:
    """One who waits for room."""

    come: asyncio.Future[None]
    lane: Lane
    cost: float
    size: int


def _less(held: dict[Hashable, float], name: Hashable, cost: float) -> None:
    left = held[name] - cost
    if left > 0:
        held[name] = left
    else:
        del held[name]
