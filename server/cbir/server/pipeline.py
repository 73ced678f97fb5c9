"""The way of a query through the process: admission, preparation on threads, batches on the engine's owner thread."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic, perf_counter

from cbir.core.errors import CbirError
from cbir.server.admission import Admission, Pace
from cbir.server.batching import BatchCounts, Batcher, DeadlineError
from cbir.server.engine import Engine
from cbir.server.limits import Limits
from cbir.server.preparation import PreparedQuery
from cbir.server.query import EngineQuery, EngineResult

__all__ = ["Pipeline"]


@dataclass(frozen=True)
class _Job:
    engine: Engine
    query: PreparedQuery
    admitted: float


class Pipeline:
    """Runs queries of one event loop on whatever engine each of them was begun with."""

    def __init__(self, limits: Limits) -> None:
        self.admission = Admission(limits.queue, limits.queue_bytes, "queries")
        self._engine_pace = Pace(0.05)
        self._decode_pace = Pace(0.01 / limits.decoders)
        self._decoders_count = limits.decoders
        self._early = BatchCounts()
        self._decoders = ThreadPoolExecutor(limits.decoders, thread_name_prefix="cbir-decode")
        # Waiting happens here and not in the pool, so that a query that is cancelled leaves nothing behind in it.
        self._free_decoders = asyncio.Semaphore(limits.decoders)
        self._batcher: Batcher[_Job, EngineResult] = Batcher(
            self._process, max_batch=limits.max_batch, key=lambda job: id(job.engine)
        )

    @property
    def counts(self) -> BatchCounts:
        """What became of the queries; those that were given up before they reached the engine's queue included."""
        late = self._batcher.counts
        return replace(
            late, cancelled=late.cancelled + self._early.cancelled, expired=late.expired + self._early.expired
        )

    @property
    def seconds_each(self) -> float:
        """What one query takes lately in the slower of the two stages."""
        return max(self._engine_pace.seconds_each, self._decode_pace.seconds_each)

    async def search(self, engine: Engine, query: EngineQuery, deadline: float | None = None) -> EngineResult:
        """Answer one query.  Cancelling the task takes the query out, unless its batch has begun.

        Args:
            deadline: On the clock of :func:`time.monotonic`.

        Raises:
            CbirError: The query cannot be answered.
            OverloadedError: The queue is full.
            DeadlineError: The deadline passed while it waited.
        """
        admitted = perf_counter()
        with self.admission.admit(query.image_bytes, self.seconds_each):
            try:
                prepared = await self._prepare(engine, query, deadline)
            except asyncio.CancelledError:
                self._early.cancelled += 1
                raise
            return await asyncio.wrap_future(self._batcher.submit(_Job(engine, prepared, admitted), deadline))

    async def close(self, grace: float) -> None:
        """Answer what waits, within ``grace`` seconds, and end the threads."""
        await asyncio.to_thread(self._batcher.close, grace)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def _prepare(self, engine: Engine, query: EngineQuery, deadline: float | None) -> PreparedQuery:
        if engine.is_light(query):
            return engine.prepare(query)
        loop = asyncio.get_running_loop()
        await self._free_decoders.acquire()
        if deadline is not None and deadline <= monotonic():
            self._free_decoders.release()
            self._early.expired += 1
            raise DeadlineError
        future = self._decoders.submit(engine.prepare, query)

        def free(done: Future[PreparedQuery]) -> None:
            # The thread is busy until its work is done, even when nobody waits for it any more.
            with suppress(RuntimeError):  # the loop is closed: the server has stopped
                loop.call_soon_threadsafe(self._free_decoders.release)

        future.add_done_callback(free)
        prepared = await asyncio.wrap_future(future)
        self._decode_pace.add(prepared.seconds / self._decoders_count)
        return prepared

    def _process(self, jobs: Sequence[_Job]) -> Sequence[EngineResult | CbirError]:
        begun = perf_counter()
        waited = [begun - job.admitted - job.query.seconds for job in jobs]
        answers = jobs[0].engine.answer([job.query for job in jobs], waited)
        self._engine_pace.add(perf_counter() - begun, len(jobs))
        return answers
