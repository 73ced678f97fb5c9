"""A queue that serves its clients in turn: whoever sends much waits for himself and not for the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["QUANTUM", "FairQueue"]

Item = TypeVar("Item")

#: What a client is served in one turn, and the most that an item may cost.
QUANTUM = 1.0


class _Lane(Generic[Item]):
    """What one client has in the queue."""

    __slots__ = ("credit", "items", "name")

    def __init__(self, name: Hashable) -> None:
        self.name = name
        self.items: deque[tuple[Item, float]] = deque()
        self.credit = QUANTUM


class FairQueue(Generic[Item]):
    """First come, first served within a lane; the lanes take turns, each as much as :data:`QUANTUM` a turn.

    Deficit round robin; source: Shreedhar and Varghese, "Efficient fair queuing using deficit round-robin", 1996.  It
    takes no lock: who shares one between threads guards it.
    """

    def __init__(self) -> None:
        self._lanes: dict[Hashable, _Lane[Item]] = {}
        self._turns: deque[_Lane[Item]] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, lane: Hashable, item: Item, cost: float) -> None:
        """Add an item at the end of its lane.

        Args:
            cost: Above 0 and at most :data:`QUANTUM`.
        """
        found = self._lanes.get(lane)
        if found is None:
            found = self._lanes[lane] = _Lane(lane)
            self._turns.append(found)
        found.items.append((item, cost))
        self._count += 1

    def pop(self) -> Item:
        """Take the item whose turn it is.

        Raises:
            IndexError: The queue is empty.
        """
        lane = self._turns[0]
        while lane.credit < lane.items[0][1]:
            # Its turn is over; what it did not use, it keeps for the next.
            lane.credit += QUANTUM
            self._turns.rotate(-1)
            lane = self._turns[0]
        item, cost = lane.items.popleft()
        lane.credit -= cost
        self._count -= 1
        if not lane.items:
            # A client that has nothing to do saves nothing up.
            self._turns.popleft()
            del self._lanes[lane.name]
        return item

    def remove(self, lane: Hashable, item: Item) -> bool:
        """Take an item out, whoever's turn it is; False where it is not in the queue."""
        found = self._lanes.get(lane)
        for place, (other, _) in enumerate(found.items if found else ()):
            if other is item:
                assert found is not None
                del found.items[place]
                self._count -= 1
                if not found.items:
                    self._turns.remove(found)
                    del self._lanes[lane]
                return True
        return False
