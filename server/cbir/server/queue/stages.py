"""What happens to a query off the event loop: it is prepared on a thread, then answered in a batch.

Two stages, each with queues of its own: the decoder threads (:mod:`cbir.server.queue.decoders`), and others for images
that take long, prepare queries ahead of the engine, and the engine's thread (:mod:`cbir.server.queue.batching`) takes
what is ready, up to a whole batch at a time.  What becomes of the queries is handed back to the event loop, a whole
batch in one call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TypeVar

from cbir.core.errors import CbirError, forget_frames
from cbir.server.engine import EngineResult, PreparedQuery, Timings
from cbir.server.limits import Limits
from cbir.server.queue.batching import Batcher, DeadlineError
from cbir.server.queue.decoders import Decoders
from cbir.server.queue.flight import Flight

__all__ = ["Stages", "Write", "Written"]

Outcome = TypeVar("Outcome")

#: An answer in bytes, the same without timings, the timings, and the score of the first hit (None: there is none).
Written = tuple[bytes, bytes, Timings, float | None]
Write = Callable[[Sequence[EngineResult]], list[tuple[bytes, bytes]]]


class Stages:
    """The decoder threads, the engine's thread, and the way from one to the other.

    Args:
        write: Makes the bytes that are sent of each result of a batch, with and without timings.
        finish: Called on the event loop with queries, what became of each, and the seconds that their batch took (0
            where there was none).
    """

    def __init__(
        self,
        limits: Limits,
        write: Write,
        finish: Callable[[Sequence[Flight], Sequence[Written | Exception], float], None],
    ) -> None:
        self._write_results, self._finish = write, finish
        #: Batches in a row that failed as a whole, without fault of a query.
        self.failed_batches = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Light queries that the event loop has prepared in this turn.
        self._light: list[Flight] = []
        self._batcher: Batcher[Flight] = Batcher(
            self._process, self._expire, max_batch=limits.max_batch, max_delay=limits.max_delay
        )
        # Up to three batches are prepared: one that is computed, the next one, and one whose answers are being sent.
        self._decoders, self._slow_decoders = (
            Decoders(self._prepare, self._expire, threads=limits.decoders, ahead=3 * limits.max_batch, name=name)
            for name in ("decode", "slow")
        )

    @property
    def engine_thread(self) -> Batcher[Flight]:
        """The thread that owns the device."""
        return self._batcher

    def bind(self) -> asyncio.AbstractEventLoop:
        """The event loop that hears of what is finished: the one that asks first."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def begin(self, flight: Flight) -> None:
        """Set an admitted query on its way.

        Raises:
            CbirError: The query cannot be prepared, and that was found out at once.
        """
        if flight.engine.is_light(flight.query):
            flight.prepared = flight.engine.prepare(flight.query)
            if not self._light:
                self.bind().call_soon(self._submit_light)
            self._light.append(flight)
        else:
            flight.decoders = self._slow_decoders if flight.is_slow else self._decoders
            flight.decoders.submit(flight)

    def _submit_light(self) -> None:
        """Hand on what one turn of the event loop has prepared, so that the engine's thread wakes once for all of it.

        A thread that wants to go on waits for Python's lock until the loop gives it up: it would take a batch of one
        query and be in the way of those that follow.
        """
        flights, self._light = self._light, []
        try:
            self._batcher.submit_all(flights)
        except RuntimeError:
            # The server has stopped meanwhile.
            self._finish(flights, [DeadlineError() for _ in flights], 0.0)

    def withdraw(self, flight: Flight) -> bool:
        """Take a query out; False where its batch has begun."""
        if flight.decoders is not None and flight.decoders.withdraw(flight):
            return True
        if not self._batcher.withdraw(flight):
            return False
        if flight.decoders is not None and flight.queued:
            flight.decoders.release()
        return True

    def left(self, flight: Flight) -> None:
        """A query has left the pipeline: the decoders may begin another in its place."""
        if flight.decoders is not None:
            flight.decoders.release()

    def on_engine_thread(self, act: Callable[[], Outcome]) -> Outcome:
        """Run something between two batches on the thread that owns the device, and wait for it.  Blocks."""
        return self._batcher.errand(act).result()

    async def close(self, grace: float) -> None:
        """Answer what waits, within ``grace`` seconds, and end the threads."""
        if self._light:
            self._submit_light()
        self._decoders.close()
        self._slow_decoders.close()
        await asyncio.to_thread(self._batcher.close, grace)

    def _prepare(self, flight: Flight) -> None:
        """On one of the threads of ``flight.decoders``."""
        assert flight.decoders is not None
        try:
            flight.prepared = flight.engine.prepare(flight.query, flight.is_awaited)
            if not self._batcher.submit(flight):
                flight.decoders.release()
        except Exception as error:  # noqa: BLE001 - carried over to the caller
            self._hand_over([flight], [error if flight.is_awaited() else DeadlineError()])

    def _expire(self, flights: Sequence[Flight]) -> None:
        self._hand_over(flights, [DeadlineError() for _ in flights])

    def _process(self, flights: Sequence[Flight]) -> None:
        """On the engine's thread, which never decodes: answer the batch."""
        taken = perf_counter()
        prepared: list[PreparedQuery] = []
        waited: list[float] = []
        for flight in flights:
            assert flight.prepared is not None
            prepared.append(flight.prepared)
            waited.append(taken - flight.prepared.seconds - flight.admitted)
        answers: Sequence[Written | Exception]
        try:
            answers = self._write(flights[0].engine.answer(prepared, waited))
            self.failed_batches = 0
        except Exception as error:  # noqa: BLE001 - whatever it was, the callers get it and the thread goes on
            answers = [error] * len(flights)
            self.failed_batches += not isinstance(error, CbirError)
        self._hand_over(flights, answers, perf_counter() - taken)

    def _write(self, results: Sequence[EngineResult | CbirError]) -> list[Written | Exception]:
        """The bytes of answers, written on the engine's thread: the results are still in its core's caches."""
        answers: list[Written | Exception] = []
        there = [result for result in results if not isinstance(result, CbirError)]
        try:
            written = iter(self._write_results(there))
        except Exception as error:  # noqa: BLE001 - only the query whose answer it is gets it
            if len(results) == 1:
                return [error]
            return [answer for result in results for answer in self._write([result])]
        for result in results:
            if isinstance(result, CbirError):
                answers.append(result)
                continue
            scores = result.ranking.scores
            answers.append((*next(written), result.timings, float(scores[0]) if len(scores) else None))
        return answers

    def _hand_over(
        self, flights: Sequence[Flight], answers: Sequence[Written | Exception], seconds: float = 0.0
    ) -> None:
        assert self._loop is not None
        for answer in answers:
            if isinstance(answer, CbirError):
                # It is no fault of the server, so nobody will ask where it was raised.
                forget_frames(answer)
        try:
            self._loop.call_soon_threadsafe(self._finish, flights, answers, seconds)
        except RuntimeError:
            # The loop is closed: the server has stopped, and nobody waits.
            return
