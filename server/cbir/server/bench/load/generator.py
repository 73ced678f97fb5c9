"""The load generator: closed loops and streams of serialised messages, through gRPC's own client.

It shares the machine with the server, so it does as little as possible: requests are serialised beforehand, answers are
kept as bytes, and its own CPU time is measured with every load.  Open loops: :mod:`.frame_generator`.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from time import perf_counter, process_time

import grpc

from cbir.server.bench.load.outcomes import Outcomes, Recorder, details_of
from cbir.server.bench.load.payloads import Payloads, in_stream, stream_place
from cbir.v1 import search_pb2

__all__ = ["SEARCH", "SEARCH_STREAM", "Generator", "Load", "Steady", "Window", "generating_cost", "load_of"]

_SERVICE = search_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name
SEARCH, SEARCH_STREAM = f"/{_SERVICE}/Search", f"/{_SERVICE}/SearchStream"
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
#: A closed loop ends after so many times its planned seconds even if it has too few requests, but not within a minute.
_PATIENCE, _LEAST_PATIENCE = 20, 60.0


@dataclass(frozen=True)
class Window:
    """How long a closed loop is measured.

    Attributes:
        seconds: Measured seconds, after the warm-up.
        warm: Seconds of warm-up, which do not count.
        each: Requests that each of the concurrent senders must complete, even if that takes longer.
    """

    seconds: float
    warm: float = 0.3
    each: int = 3


@dataclass(frozen=True)
class Load:
    """The outcomes of a load, and what generating it cost.

    Attributes:
        outcomes: Requests that ended after the warm-up; in an open loop, all requests.
        begin: When the warm-up ended, or in an open loop the start of the schedule, by :func:`time.perf_counter`.
        generator_seconds: CPU time of this process from the first request to the last answer.
        requests: Requests sent in that time.
        answered: Requests that were answered.
        cancelled: Requests that the caller or the server cancelled.
        replies: Serialised answers, at most a few thousand of them.
    """

    outcomes: Outcomes
    begin: float
    generator_seconds: float
    requests: int
    answered: int
    cancelled: int
    replies: Sequence[bytes]


class Generator:
    """Sends requests to one or several servers, in turn.

    Args:
        addresses: ``host:port`` of each server.
        channels: Number of connections to each server.
        timeout: Deadline of every call in seconds.
    """

    def __init__(self, addresses: Sequence[str], channels: int = 1, timeout: float = 60.0) -> None:
        # Without its own subchannel pool, channels with equal options would share one connection.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channels = [
            grpc.aio.insecure_channel(address, options=options) for address in addresses for _ in range(channels)
        ]
        self._search = [channel.unary_unary(SEARCH) for channel in self._channels]
        self._stream = [channel.stream_stream(SEARCH_STREAM) for channel in self._channels]
        self._turn = count()
        self._timeout = timeout

    async def __aenter__(self) -> Generator:
        await asyncio.gather(*(channel.channel_ready() for channel in self._channels))
        return self

    async def __aexit__(self, *exception: object) -> None:
        for channel in self._channels:
            await channel.close()

    async def closed(
        self,
        payloads: Payloads,
        concurrency: int,
        window: Window,
        cancel_after: Callable[[], float | None] = lambda: None,
    ) -> Load:
        """Keep ``concurrency`` unary requests in flight: each sender sends the next one when its last has ended.

        Args:
            cancel_after: Called for every request; gives the seconds after which the caller cancels it, or None.
        """
        recorder, ended = Recorder(), [0] * concurrency
        with generating_cost() as cost:
            steady = Steady(window, ended)

            async def place(number: int) -> None:
                while not steady.over():
                    sent = perf_counter()
                    await self._ask(payloads(), sent, number, recorder, cancel_after())
                    ended[number] += perf_counter() >= steady.begin

            await asyncio.gather(*(place(number) for number in range(concurrency)))
        return load_of(recorder, steady.begin, steady.end, cost())

    async def streamed(self, payloads: Payloads, concurrency: int, window: Window) -> Load:
        """Keep ``concurrency`` requests of one stream in flight."""
        recorder, ended = Recorder(), [0] * concurrency
        sent = [0.0] * concurrency
        with generating_cost() as cost:
            steady = Steady(window, ended)
            call = self._stream[next(self._turn) % len(self._stream)]()
            for number in range(concurrency):
                sent[number] = perf_counter()
                await call.write(in_stream(number, payloads()))
            under_way = concurrency
            while under_way:
                reply = await call.read()
                if reply is grpc.aio.EOF:
                    break
                number, good = stream_place(reply)
                now = perf_counter()
                if good:
                    recorder.answer(sent[number], sent[number], now, number, reply)
                else:
                    error = search_pb2.SearchStreamResponse.FromString(reply).error
                    recorder.fail(
                        sent[number], sent[number], now, number, _CODES.get(error.code, "UNKNOWN"),
                        error.SerializeToString(),
                    )  # fmt: skip
                ended[number] += now >= steady.begin
                if steady.over():
                    under_way -= 1
                else:
                    sent[number] = perf_counter()
                    await call.write(in_stream(number, payloads()))
            await call.done_writing()
            # Read to the end of the stream, so that it is not cut off when the connection closes.
            await call.read()
        return load_of(recorder, steady.begin, steady.end, cost())

    async def _ask(
        self, request: bytes, due: float, place: int, recorder: Recorder, cancel_after: float | None = None
    ) -> None:
        sent = perf_counter()
        call = self._search[next(self._turn) % len(self._search)](request, timeout=self._timeout)
        if cancel_after is not None:
            asyncio.get_running_loop().call_later(cancel_after, call.cancel)
        try:
            reply = await call
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            recorder.fail(due, sent, perf_counter(), place, code, details_of(error.trailing_metadata()))
        except asyncio.CancelledError:
            if not call.cancelled():
                raise
            recorder.fail(due, sent, perf_counter(), place, "CANCELLED", b"")
        else:
            recorder.answer(due, sent, perf_counter(), place, reply)


class Steady:
    """Decides from when on a closed loop counts, and when it is over.

    Args:
        ended: For each sender, how many of its requests have ended since.
    """

    def __init__(self, window: Window, ended: Sequence[int]) -> None:
        self._window, self._ended = window, ended
        self.begin = perf_counter() + window.warm
        self.end = self.begin + window.seconds
        self._last = self.begin + max(_PATIENCE * window.seconds, _LEAST_PATIENCE)
        self._over = False

    def over(self) -> bool:
        """Whether no further request is to be sent."""
        now = perf_counter()
        if not self._over and now >= self.end:
            # One more than the wanted cycles: the end of the first request only begins the first cycle.
            if now < self._last and min(self._ended) <= self._window.each:
                return False
            self._over, self.end = True, now
        return self._over


def load_of(recorder: Recorder, begin: float, end: float | None, seconds: float) -> Load:
    """What was recorded, of a closed loop between ``begin`` and ``end``, of an open loop (None) all of it."""
    every = recorder.outcomes()
    steady = every if end is None else every.picked((every.done >= begin) & (every.done <= end))
    cancelled = sum(failure.code == "CANCELLED" for failure in every.failures.values())
    return Load(steady, begin, seconds, len(every), int(every.answered.sum()), cancelled, recorder.replies)


@contextmanager
def generating_cost() -> Iterator[Callable[[], float]]:
    """Measure the CPU time of this process.  Garbage is collected before and after, but not during the load."""
    gc.collect()
    gc.disable()
    begun = process_time()
    try:
        yield lambda: process_time() - begun
    finally:
        gc.enable()
