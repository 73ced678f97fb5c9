"""One query under way."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

from cbir.core.images import is_slow
from cbir.server.engine import Engine, EngineQuery, ImageBytes, PreparedQuery, Text
from cbir.server.queue.admission import Admission
from cbir.server.queue.batching import Ticket
from cbir.server.queue.fair_queue import Lane

if TYPE_CHECKING:
    from cbir.server.queue.decoders import Decoders

__all__ = ["LIGHT", "Flight", "Reply"]

#: Takes the bytes of an answer, or why there is none.  Called on the event loop.
Reply = Callable[[bytes | Exception], None]

#: Cost of a query that needs no model, by a stored id or by an embedding; queries by image or in words cost 1.
LIGHT = 0.125


class Flight(Ticket):
    """A query, the engine it began with, and those who wait for its answer.

    Attributes:
        replies: Those who wait.
        admitted: When it came, on the clock of :func:`time.perf_counter`.
        is_heavy: A model has to look at it.
        is_slow: Its image takes long to decode; it keeps apart from those that do not.
        key: What equal queries have in common; None where no answers are kept, and equal queries are not merged.
        admission: Where it holds room.
        prepared: Once it is.
        decoders: The threads that prepare it; None where none does.
        done: It has left the pipeline.
    """

    __slots__ = (
        "admission", "admitted", "decoders", "done", "engine", "is_heavy", "is_slow", "key", "prepared", "query",
        "replies",
    )  # fmt: skip

    def __init__(self, engine: Engine, query: EngineQuery, lane: Lane, deadline: float | None, reply: Reply) -> None:
        self.is_heavy = isinstance(query.source, ImageBytes | Text)
        super().__init__(lane, 1.0 if self.is_heavy else LIGHT, deadline, engine)
        self.engine, self.query, self.replies = engine, query, [reply]
        self.admitted = perf_counter()
        self.key: bytes | None = None
        self.admission: Admission | None = None
        self.prepared: PreparedQuery | None = None
        self.decoders: Decoders[Flight] | None = None
        self.is_slow = isinstance(query.source, ImageBytes) and is_slow(query.source.data)
        self.done = False

    def give_back(self) -> None:
        """Free the room that it holds."""
        assert self.admission is not None
        self.admission.give_back(self.lane, self.cost, self.query.image_bytes)

    def is_awaited(self) -> bool:
        """Whether anybody waits for it who still has time."""
        return not self.withdrawn and (self.deadline is None or self.deadline > monotonic())

    def join(self, other: Flight) -> None:
        """Let those who wait for an equal query wait for this one.  It is worked on while any of them has time."""
        self.replies += other.replies
        if self.deadline is not None:
            self.deadline = None if other.deadline is None else max(self.deadline, other.deadline)
