"""A queue that serves its clients in turn: whoever sends much waits for himself and not for the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any, Generic, NamedTuple, TypeVar

__all__ = ["QUANTUM", "FairQueue", "Lane"]

Item = TypeVar("Item")
Node = TypeVar("Node", bound="_Node")

#: What a client is served in one turn, and the most that an item may cost.
QUANTUM = 1.0


class Lane(NamedTuple):
    """Whose turn an item takes.

    Attributes:
        identity: Who asks, by what he cannot choose at will: the name of his token, or his address.
        client: A part of him by his own word.  His turns are divided among his parts; more parts get no more turns.
    """

    identity: Hashable
    client: Hashable = None


class _Node:
    """One that takes turns.

    Attributes:
        credit: What is left of its turn.
    """

    __slots__ = ("credit", "name")

    def __init__(self, name: Hashable) -> None:
        self.name, self.credit = name, QUANTUM

    def next_cost(self) -> float:
        """Of the item that comes next."""
        raise NotImplementedError


class _Round(Generic[Node]):
    """Nodes that take turns, each as much as :data:`QUANTUM` a turn."""

    __slots__ = ("nodes", "turns")

    def __init__(self) -> None:
        self.nodes: dict[Hashable, Node] = {}
        self.turns: deque[Node] = deque()

    def add(self, node: Node) -> Node:
        self.nodes[node.name] = node
        self.turns.append(node)
        return node

    def first(self) -> Node:
        """The node whose turn it is; asked again, the same."""
        node = self.turns[0]
        while node.credit < node.next_cost():
            # Its turn is over; what it did not use, it keeps for the next.
            node.credit += QUANTUM
            self.turns.rotate(-1)
            node = self.turns[0]
        return node

    def drop(self, node: Node) -> None:
        """Forget a node that has nothing to do; it saves nothing up."""
        if self.turns[0] is node:
            self.turns.popleft()
        else:
            self.turns.remove(node)
        del self.nodes[node.name]


class _Line(_Node, Generic[Item]):
    """What one client has in the queue, first come first served."""

    __slots__ = ("items",)

    def __init__(self, name: Hashable) -> None:
        super().__init__(name)
        self.items: deque[tuple[Item, float]] = deque()

    def next_cost(self) -> float:
        return self.items[0][1]


class _Share(_Node):
    """What one identity has in the queue: the lines of its clients."""

    __slots__ = ("lines",)

    def __init__(self, name: Hashable) -> None:
        super().__init__(name)
        self.lines: _Round[_Line[Any]] = _Round()

    def next_cost(self) -> float:
        return self.lines.first().next_cost()


class FairQueue(Generic[Item]):
    """First come, first served within a lane; identities take turns, and so do the clients of each.

    Deficit round robin, on two floors; source: Shreedhar and Varghese, "Efficient fair queuing using deficit
    round-robin", 1996.  It takes no lock: who shares one between threads guards it.
    """

    def __init__(self) -> None:
        self._shares: _Round[_Share] = _Round()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, lane: Lane, item: Item, cost: float) -> None:
        """Add an item at the end of its lane.

        Args:
            cost: Above 0 and at most :data:`QUANTUM`.
        """
        share = self._shares.nodes.get(lane.identity) or self._shares.add(_Share(lane.identity))
        line = share.lines.nodes.get(lane.client) or share.lines.add(_Line(lane.client))
        line.items.append((item, cost))
        self._count += 1

    def peek(self) -> Item:
        """The item that :meth:`pop` would give.

        Raises:
            IndexError: The queue is empty.
        """
        item: Item = self._shares.first().lines.first().items[0][0]
        return item

    def pop(self) -> Item:
        """Take the item whose turn it is.

        Raises:
            IndexError: The queue is empty.
        """
        share = self._shares.first()
        line = share.lines.first()
        item: Item
        item, cost = line.items.popleft()
        share.credit -= cost
        line.credit -= cost
        self._leave(share, line)
        return item

    def remove(self, lane: Lane, item: Item) -> bool:
        """Take an item out, whoever's turn it is; False where it is not in the queue."""
        share = self._shares.nodes.get(lane.identity)
        line = share.lines.nodes.get(lane.client) if share else None
        if share is None or line is None:
            return False
        for place, (other, _) in enumerate(line.items):
            if other is item:
                del line.items[place]
                self._leave(share, line)
                return True
        return False

    def _leave(self, share: _Share, line: _Line[Item]) -> None:
        """Note that one item has gone."""
        self._count -= 1
        if not line.items:
            share.lines.drop(line)
            if not share.lines.nodes:
                self._shares.drop(share)
