"""The event loop's side of a query: it is admitted, looked up in memory, set on its way, and its answer handed out.

The whole life of a ``Search``, from bytes to bytes, is told in :mod:`cbir.server.transport.search_call`.  The event
loop waits for nothing here: a query costs it one future and no task of its own, and a whole batch of answers comes back
in one call.  What happens on threads is in :mod:`cbir.server.queue.stages`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from time import perf_counter
from typing import TypeVar

from cbir.server.engine import Engine, EngineQuery, Timings
from cbir.server.limits import Limits
from cbir.server.queue.admission import Admission
from cbir.server.queue.batching import Batcher, DeadlineError
from cbir.server.queue.cache import AnswerCache
from cbir.server.queue.fair_queue import Lane
from cbir.server.queue.flight import LIGHT, Flight, Reply
from cbir.server.queue.forecast import Forecast
from cbir.server.queue.stages import Stages, Write, Written
from cbir.server.queue.tally import Tally

__all__ = ["Pipeline"]

Outcome = TypeVar("Outcome")

Fingerprint = Callable[[], bytes]

#: Digests of images up to this size are taken on the event loop, in a tenth of a millisecond; larger ones on a thread.
_DIGEST_INLINE = 128 * 2**10


class Pipeline:
    """Runs queries of one event loop on whatever engine each of them was begun with.

    Args:
        write: Makes the bytes of each result, with and without timings: an answer from memory took no time.
    """

    def __init__(self, limits: Limits, write: Write) -> None:
        self.tally = Tally(limits.buckets)
        self.cache = AnswerCache(limits.cache_entries, limits.cache_bytes)
        self.admission = Admission(limits.queue, limits.queue_bytes, "queries")
        # Streams wait for room and are not refused; apart from the others, so that neither shuts the other out.
        self.streams = Admission(max(1.0, limits.queue / 2), limits.queue_bytes // 2, "queries of streams")
        # Those whose images take seconds to decode, so that they neither fill the queue nor hold up its turns.
        self.slow = Admission(max(1.0, limits.queue / 4), limits.queue_bytes // 2, "large query images")
        self.forecast = Forecast(limits.decoders)
        self._flying: dict[tuple[Engine, bytes], Flight] = {}
        self._stages = Stages(limits, write, self._finish)

    def check_room(self, size: int) -> None:
        """Refuse a request unparsed where the queue has no room for anything.

        Small requests are parsed all the same where answers are kept: theirs may be among them.

        Args:
            size: Bytes of the request.

        Raises:
            OverloadedError: The queue is full.
        """
        if self.admission.is_full(LIGHT) and (size > _DIGEST_INLINE or not self.cache):
            self.admission.refuse(self.forecast.wait())

    def check_time(self, deadline: float | None) -> None:
        """Refuse a request unread where even the lightest query could not be answered by its deadline.

        Args:
            deadline: On the clock of :func:`time.monotonic`; None: it waits as long as it takes.

        Raises:
            OverloadedError: ``DEADLINE_UNREACHABLE``.
        """
        self.forecast.check_unread(deadline)

    async def search(
        self, engine: Engine, query: EngineQuery, fingerprint: Fingerprint, lane: Lane, deadline: float | None
    ) -> bytes:
        """Answer one query.  Cancelling the task takes the query out, unless its batch has begun.

        Args:
            fingerprint: What the query has in common with its equals; may take long for large images.
            lane: Who asks; those who ask much wait for themselves.
            deadline: On the clock of :func:`time.monotonic`.

        Returns:
            What ``write`` makes of the result.

        Raises:
            CbirError: The query cannot be answered.
            OverloadedError: There is no room, or no time.
            DeadlineError: The deadline passed while it waited.
        """
        answer: asyncio.Future[bytes] = self._stages.bind().create_future()
        reply = partial(_settle, answer)
        # What is long in reading must be let in first; the rest is answered from memory even by a flooded server.
        early = query.image_bytes > _DIGEST_INLINE
        flight = Flight(engine, query, lane, deadline, reply)
        if early:
            self._admit(flight)
        found = await self._recall(flight, fingerprint) if self.cache else None
        if found is None:
            if not early:
                self._admit(flight)
            found = self._begin(flight)
        elif early:
            flight.give_back()
        if isinstance(found, bytes):
            return found
        try:
            return await answer
        except asyncio.CancelledError:
            self.leave(found, reply)
            raise

    async def ask(
        self,
        engine: Engine,
        query: EngineQuery,
        fingerprint: Fingerprint,
        lane: Lane,
        deadline: float | None,
        reply: Reply,
    ) -> Flight | None:
        """Begin one query of a stream, as soon as there is room for it.

        Returns:
            What :meth:`leave` wants; None where ``reply`` has been called already.

        Raises:
            CbirError: The query cannot be answered.
        """
        self._stages.bind()
        flight = Flight(engine, query, lane, deadline, reply)
        flight.admission = self.streams
        await self.streams.take_in_turn(lane, flight.cost, flight.query.image_bytes)
        found = await self._recall(flight, fingerprint) if self.cache else None
        if found is None:
            return self._begin(flight)
        flight.give_back()
        if isinstance(found, bytes):
            reply(found)
            return None
        return found

    def leave(self, flight: Flight, reply: Reply) -> None:
        """One who waits for an answer waits no longer; the query is taken out if nobody else does."""
        if flight.done or reply not in flight.replies:
            return
        flight.replies.remove(reply)
        if flight.replies:
            return
        if not self._stages.withdraw(flight):
            return
        self.tally.cancelled += 1
        self._depart(flight)

    def on_engine_thread(self, act: Callable[[], Outcome]) -> Outcome:
        """Run something between two batches on the thread that owns the device, and wait for it.  Blocks."""
        return self._stages.on_engine_thread(act)

    @property
    def engine_thread(self) -> Batcher[Flight]:
        """The thread that owns the device."""
        return self._stages.engine_thread

    @property
    def failed_batches(self) -> int:
        """Batches in a row that failed without fault of a query; set to 0 when the device was seen to work."""
        return self._stages.failed_batches

    @failed_batches.setter
    def failed_batches(self, count: int) -> None:
        self._stages.failed_batches = count

    def revive(self) -> None:
        """Start another engine's thread in place of one that has ended."""
        self._stages.engine_thread.revive()

    async def close(self, grace: float) -> None:
        """Answer what waits, within ``grace`` seconds, and end the threads."""
        await self._stages.close(grace)

    def _admit(self, flight: Flight) -> None:
        """Hold room for a query, or refuse it."""
        admission = flight.admission = self.slow if flight.is_slow else self.admission
        if flight.is_slow:
            admission.take(flight.lane, flight.cost, flight.query.image_bytes, self.forecast.wait())
            return
        mine = admission.ahead(flight.lane, flight.cost)
        self.forecast.check(flight, mine, chain(admission.held.values(), self.streams.held.values()))
        admission.take(flight.lane, flight.cost, flight.query.image_bytes, self.forecast.wait())

    async def _recall(self, flight: Flight, fingerprint: Fingerprint) -> bytes | Flight | None:
        """The answer, where it is known, or the same query of somebody else, to wait for together."""
        if flight.query.image_bytes <= _DIGEST_INLINE:
            key = fingerprint()
        else:
            try:
                key = await asyncio.to_thread(fingerprint)
            except BaseException:
                flight.give_back()
                raise
        flight.key = key
        known = self.cache.get(flight.engine.version, key)
        if known is not None:
            return known
        other = self._flying.get((flight.engine, key))
        if other is None:
            return None
        self.tally.joined += 1
        other.join(flight)
        return other

    def _begin(self, flight: Flight) -> Flight:
        """Set an admitted query on its way."""
        self.tally.admitted += 1
        self.forecast.count(flight, 1)
        if flight.key is not None:
            self._flying[flight.engine, flight.key] = flight
        try:
            self._stages.begin(flight)
        except BaseException:
            self._depart(flight)
            raise
        return flight

    def _depart(self, flight: Flight) -> None:
        """Free what a query held."""
        flight.done = True
        flight.give_back()
        self.forecast.count(flight, -1)
        if flight.key is not None:
            del self._flying[flight.engine, flight.key]

    def _finish(self, flights: Sequence[Flight], answers: Sequence[Written | Exception], seconds: float) -> None:
        """Hand over the answers to a batch, or to those that got no further.

        Args:
            seconds: What the batch took; 0 where there was none.
        """
        told: list[tuple[Flight, Timings]] = []
        for flight, answer in zip(flights, answers, strict=True):
            self._stages.left(flight)
            if flight.done:
                continue
            self._depart(flight)
            outcome: bytes | Exception
            if isinstance(answer, Exception):
                outcome = answer
                self.tally.expired += isinstance(answer, DeadlineError)
            else:
                outcome, body, timings, first_score = answer
                if first_score is not None:
                    self.tally.first_scores.add(first_score)
                told.append((flight, timings))
                if flight.key is not None:
                    self.cache.put(flight.engine.version, flight.key, body)
            self.tally.cancelled_late += flight.begun and not flight.replies and not isinstance(answer, DeadlineError)
            # Whoever waits may hold the query, as it holds them.
            replies, flight.replies = flight.replies, []
            for reply in replies:
                reply(outcome)
        # Those who wait go on first.
        asyncio.get_running_loop().call_soon(self._note, flights, told, perf_counter(), seconds)

    def _note(
        self, flights: Sequence[Flight], told: Sequence[tuple[Flight, Timings]], now: float, seconds: float
    ) -> None:
        """Count what a batch and its answers took."""
        if seconds:
            self.forecast.note_batch(flights, seconds)
            self.tally.processed += len(flights)
            self.tally.batches.add(len(flights))
        stages = self.tally.stages
        for flight, timings in told:
            if flight.is_heavy:
                stages["embed"].add(timings.embed)
            if flight.query.image_bytes and not flight.is_slow:
                self.forecast.decode.add(timings.decode)
                stages["decode"].add(timings.decode)
            stages["queue"].add(timings.queue)
            stages["search"].add(timings.search)
            stages["fuse"].add(timings.fuse)
            stages["total"].add(now - flight.admitted)


def _settle(answer: asyncio.Future[bytes], outcome: bytes | Exception) -> None:
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
