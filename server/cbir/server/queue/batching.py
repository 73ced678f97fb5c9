"""Continuous batching: an idle engine starts at once, a busy one then takes all that came meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import Any, Generic, TypeVar

from cbir.core.errors import CbirError
from cbir.server.queue.fair_queue import FairQueue, Lane

__all__ = ["Batcher", "DeadlineError", "Ticket"]

Outcome = TypeVar("Outcome")


class DeadlineError(CbirError):
    """The caller's deadline passed before the work began."""

    def __init__(self) -> None:
        super().__init__(
            "the deadline passed while the query was waiting: give it more time", reason="DEADLINE_EXCEEDED"
        )


class Ticket:
    """One query's place in the queues.

    Attributes:
        lane: Whose it is; lanes are served in turn.
        cost: Its part of a turn, above 0 and at most 1.
        deadline: On the clock of :func:`time.monotonic`; None: it waits as long as it takes.
        group: Tickets of different groups are not put into one batch.
        queued: It has come to the batcher; for the batcher to set, as all that follow.
        begun: Its batch has begun, or its deadline was found to have passed: it cannot be withdrawn any more.
        withdrawn: Nobody waits for it any more.
    """

    __slots__ = ("begun", "cost", "deadline", "group", "lane", "queued", "withdrawn")

    def __init__(self, lane: Lane, cost: float, deadline: float | None = None, group: object = None) -> None:
        self.lane, self.cost, self.deadline, self.group = lane, cost, deadline, group
        self.queued = self.begun = self.withdrawn = False


Work = TypeVar("Work", bound=Ticket)


class Batcher(Generic[Work]):
    """One owner thread that processes batches of tickets, and nothing else touches the device.

    It bounds nothing: who submits has been admitted.

    Args:
        process: Called on the owner thread with up to ``max_batch`` tickets of one group.
        expire: Called on the owner thread with tickets whose deadline passed before their batch began.
        max_delay: Seconds that an idle engine waits for a batch to fill; 0: it starts at once.
    """

    def __init__(
        self,
        process: Callable[[Sequence[Work]], None],
        expire: Callable[[Sequence[Work]], None],
        *,
        max_batch: int,
        max_delay: float = 0.0,
    ) -> None:
        self._process, self._expire, self._max_batch, self._max_delay = process, expire, max_batch, max_delay
        self._waiting: FairQueue[Work] = FairQueue()
        self._held: Work | None = None  # taken from the queue, but of another group than the batch before it
        self._errands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._full_at = 0.0
        self._closed = False
        #: Since when the owner thread is at one batch or errand, on the clock of :func:`time.monotonic`.
        self.working_since: float | None = None
        # A daemon: a forward pass that hangs must not keep a stopped server alive.
        self._thread = threading.Thread(target=self._run, name="cbir-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the owner thread runs."""
        return self._thread.is_alive()

    def revive(self) -> None:
        """Start another owner thread in place of one that has ended."""
        with self._changed:
            if not self._closed and not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="cbir-engine", daemon=True)
                self._thread.start()

    def submit(self, ticket: Work) -> bool:
        """Queue a ticket; False where it was withdrawn before it came here.

        Raises:
            RuntimeError: The batcher is closed.
        """
        return self.submit_all((ticket,)) == 1

    def submit_all(self, tickets: Iterable[Work]) -> int:
        """Queue tickets, and wake the owner thread once; how many of them had not been withdrawn before.

        Raises:
            RuntimeError: The batcher is closed.
        """
        queued = 0
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            for ticket in tickets:
                if ticket.withdrawn:
                    continue
                ticket.queued = True
                if not self._waiting:
                    self._full_at = monotonic() + self._max_delay
                self._waiting.push(ticket.lane, ticket, ticket.cost)
                queued += 1
            if queued:
                self._changed.notify()
        return queued

    def withdraw(self, ticket: Work) -> bool:
        """Take a ticket out, or keep it out if it has yet to come; False where it has begun."""
        with self._changed:
            if ticket.begun:
                return False
            ticket.withdrawn = True
            if ticket is self._held:
                self._held = None
            else:
                self._waiting.remove(ticket.lane, ticket)
            return True

    def errand(self, act: Callable[[], Outcome]) -> Future[Outcome]:
        """Run something on the owner thread between two batches; at most one errand between any two.

        Raises:
            RuntimeError: The batcher is closed.
        """
        future: Future[Outcome] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._errands.append((act, future))
            self._changed.notify()
        return future

    def close(self, timeout: float | None = None) -> bool:
        """Take no more tickets, process those that wait, and end the thread.

        Args:
            timeout: Seconds to wait for that; None: as long as it takes.

        Returns:
            Whether the thread has ended.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while self._wait():
            self.working_since = monotonic()
            batch: list[Work] = []
            try:
                if self._errands:
                    _run_errand(*self._errands.popleft())
                batch, expired = self._take()
                if expired:
                    self._expire(expired)
                if batch:
                    self._process(batch)
            except BaseException:
                # The thread ends, which somebody sees to; nobody is left waiting for an answer that will not come.
                self._expire(batch)
                raise
            finally:
                self.working_since = None
            # An engine that was replaced is freed when its last batch is forgotten.
            del batch, expired

    def _wait(self) -> bool:
        """Wait until there is something to do; False once closed and empty."""
        with self._changed:
            while (due := self._due()) != 0:
                if due is None and self._closed:
                    return False
                self._changed.wait(due)
            return True

    def _due(self) -> float | None:
        """Seconds until there is something to do, None where nothing is there."""
        if self._errands or self._held:
            return 0
        if not self._waiting:
            return None
        if self._closed or len(self._waiting) >= self._max_batch:
            return 0
        return max(0.0, self._full_at - monotonic())

    def _take(self) -> tuple[list[Work], list[Work]]:
        """The next batch, and those found on the way whose deadline has passed."""
        batch: list[Work] = []
        expired: list[Work] = []
        with self._changed:
            now = monotonic()
            while len(batch) < self._max_batch and (self._held or self._waiting):
                ticket, self._held = self._held or self._waiting.pop(), None
                if ticket.deadline is not None and ticket.deadline <= now:
                    ticket.begun = True
                    expired.append(ticket)
                elif batch and ticket.group is not batch[0].group:
                    self._held = ticket
                    break
                else:
                    batch.append(ticket)
            for ticket in batch:
                ticket.begun = True
            # What is left has waited for a whole batch.
            self._full_at = 0.0
        return batch, expired


def _run_errand(act: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(act())
    except BaseException as error:  # noqa: BLE001 - carried over to the caller
        future.set_exception(error)
