"""Continuous batching: an idle engine starts at once, a busy one then takes all that came meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar

from cbir.core.errors import CbirError

__all__ = ["BatchCounts", "Batcher", "DeadlineError"]

Job = TypeVar("Job")
Answer = TypeVar("Answer")


class DeadlineError(CbirError):
    """The caller's deadline passed before the work began."""

    def __init__(self) -> None:
        super().__init__(
            "the deadline passed while the query was waiting: give it more time", reason="DEADLINE_EXCEEDED"
        )


@dataclass
class BatchCounts:
    """What became of the jobs.

    Attributes:
        batches: Batches that were processed.
        processed: Jobs in them.
        cancelled: Jobs whose caller left before their batch began; they cost nothing.
        expired: Jobs whose deadline passed before their batch began; they cost nothing.
    """

    batches: int = 0
    processed: int = 0
    cancelled: int = 0
    expired: int = 0


@dataclass(frozen=True)
class _Waiting(Generic[Job, Answer]):
    job: Job
    deadline: float | None
    future: Future[Answer]


class Batcher(Generic[Job, Answer]):
    """One owner thread that processes batches of jobs in the order they came.

    It bounds nothing: who submits has been admitted.

    Args:
        process: Called on the owner thread with up to ``max_batch`` jobs; gives an answer, or an exception, for each.
        key: Jobs of different keys are not put into one batch.
    """

    def __init__(
        self,
        process: Callable[[Sequence[Job]], Sequence[Answer | Exception]],
        *,
        max_batch: int,
        key: Callable[[Job], Hashable] = lambda job: None,
    ) -> None:
        self._process, self._max_batch, self._key = process, max_batch, key
        self._waiting: deque[_Waiting[Job, Answer]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.counts = BatchCounts()
        # A daemon: a forward pass that hangs must not keep a stopped server alive.
        self._thread = threading.Thread(target=self._run, name="cbir-engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job, deadline: float | None = None) -> Future[Answer]:
        """Queue a job.  Cancelling the future before the job's batch begins takes the job out.

        Args:
            deadline: On the clock of :func:`time.monotonic`.

        Raises:
            RuntimeError: The batcher is closed.
        """
        future: Future[Answer] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(_Waiting(job, deadline, future))
            self._changed.notify()
        return future

    def close(self, timeout: float | None = None) -> bool:
        """Take no more jobs, process those that wait, and end the thread.

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
        while (batch := self._take()) is not None:
            if batch:
                self._answer(batch)
            # An engine that was replaced is freed when its last batch is forgotten.
            del batch

    def _take(self) -> list[_Waiting[Job, Answer]] | None:
        """Wait for jobs and take those that are still wanted; None once closed and empty."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            batch: list[_Waiting[Job, Answer]] = []
            now = monotonic()
            while self._waiting and len(batch) < self._max_batch:
                if batch and self._key(self._waiting[0].job) != self._key(batch[0].job):
                    break
                item = self._waiting.popleft()
                if not item.future.set_running_or_notify_cancel():
                    self.counts.cancelled += 1
                elif item.deadline is not None and item.deadline <= now:
                    self.counts.expired += 1
                    item.future.set_exception(DeadlineError())
                else:
                    batch.append(item)
            return batch

    def _answer(self, batch: Sequence[_Waiting[Job, Answer]]) -> None:
        self.counts.batches += 1
        self.counts.processed += len(batch)
        try:
            answers = self._process([item.job for item in batch])
        except Exception as error:  # noqa: BLE001 - whatever it was, the callers get it and the thread goes on
            for item in batch:
                item.future.set_exception(error)
            return
        for item, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                item.future.set_exception(answer)
            else:
                item.future.set_result(answer)
