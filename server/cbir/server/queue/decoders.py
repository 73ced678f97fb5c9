"""Threads that prepare queries ahead of the engine: decode, crop, resize."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Generic, TypeVar

from cbir.server.queue.batching import Ticket
from cbir.server.queue.fair_queue import FairQueue

__all__ = ["Decoders"]

Work = TypeVar("Work", bound=Ticket)


class Decoders(Generic[Work]):
    """A bounded number of threads, which work ahead of the engine by a bounded number of tickets.

    What is beyond that waits undecoded, so that nothing is spent on it if it is cancelled or expires, and a client that
    comes later has its turn before the flood of another.

    Args:
        prepare: Called on a thread; must not raise.
        expire: Called on a thread with tickets whose deadline passed before they were begun.
        ahead: Most tickets that are begun and not yet :meth:`released <release>`.
        name: Of the threads.
    """

    def __init__(
        self,
        prepare: Callable[[Work], None],
        expire: Callable[[Sequence[Work]], None],
        *,
        threads: int,
        ahead: int,
        name: str = "decode",
    ) -> None:
        self._prepare, self._expire, self._room = prepare, expire, ahead
        self._waiting: FairQueue[Work] = FairQueue()
        self._changed = threading.Condition(threading.Lock())
        self._closed = False
        for number in range(threads):
            threading.Thread(target=self._run, name=f"cbir-{name}-{number}", daemon=True).start()

    def submit(self, ticket: Work) -> None:
        """Queue a ticket."""
        with self._changed:
            self._waiting.push(ticket.lane, ticket, ticket.cost)
            self._changed.notify()

    def withdraw(self, ticket: Work) -> bool:
        """Take a ticket out; False where a thread has begun with it."""
        with self._changed:
            return self._waiting.remove(ticket.lane, ticket)

    def release(self) -> None:
        """A ticket that was begun has left the pipeline: there is room for another."""
        with self._changed:
            self._room += 1
            self._changed.notify()

    def close(self) -> None:
        """End the threads, each after what it is at; what waits is forgotten."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while (ticket := self._take()) is not None:
            if ticket.deadline is not None and ticket.deadline <= monotonic():
                self._expire([ticket])
            else:
                self._prepare(ticket)
            # An engine that was replaced is freed when its last query is forgotten.
            del ticket

    def _take(self) -> Work | None:
        """The next ticket, None once closed."""
        with self._changed:
            while not (self._closed or (self._waiting and self._room > 0)):
                self._changed.wait()
            if self._closed:
                return None
            self._room -= 1
            return self._waiting.pop()
