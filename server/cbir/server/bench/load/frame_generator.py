"""The load generator of floods: open and closed loops of unary calls, in frames (:mod:`.http2`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import cycle
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from cbir.core.errors import ConfigurationError
from cbir.server.bench.load.generator import SEARCH, Load, Steady, Window, generating_cost, load_of
from cbir.server.bench.load.http2 import Call, Connection
from cbir.server.bench.load.outcomes import Recorder
from cbir.server.bench.load.payloads import Payloads

__all__ = ["FrameGenerator"]

_CONNECT_SECONDS = 30.0
#: Requests that are sent without a look at what has come.
_AT_ONCE = 64


class FrameGenerator:
    """Sends unary requests to one or several servers, in turn.

    Args:
        addresses: ``host:port`` of each server, without TLS.
        channels: Number of connections to each server.
        timeout: Deadline of every call in seconds.
    """

    def __init__(self, addresses: Sequence[str], channels: int = 1, timeout: float = 60.0) -> None:
        self._addresses = [address for address in addresses for _ in range(channels)]
        self._timeout = timeout
        self._connections: list[Connection] = []
        self._ended: Callable[[Call, str, bytes], None] = lambda call, code, told: None

    async def __aenter__(self) -> FrameGenerator:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                self._connections = [await self._connect(address) for address in self._addresses]
                await asyncio.gather(*(one.ready for one in self._connections))
        except OSError as error:
            raise ConfigurationError(
                f"the server at {self._addresses[0]} does not answer ({error or 'it took too long'}): start it with "
                "`cbir serve`",
                reason="BENCH_SERVER",
            ) from error
        self._turn = cycle(self._connections)
        return self

    async def _connect(self, address: str) -> Connection:
        host, _, port = address.rpartition(":")
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(SEARCH, address, lambda *end: self._ended(*end)), host.strip("[]"), int(port)
        )
        return connection

    async def __aexit__(self, *exception: object) -> None:
        for connection in self._connections:
            connection.close()

    async def scheduled(self, payloads: Payloads, arrivals: NDArray[np.float64], begin: float | None = None) -> Load:
        """Send each request when it is due, whatever has become of those before it.

        Args:
            arrivals: Ascending times in seconds from the start.
            begin: The start, by :func:`time.perf_counter`; None: now.
        """
        recorder, left, empty = Recorder(), len(arrivals), asyncio.Event()

        def ended(call: Call, code: str, told: bytes) -> None:
            nonlocal left
            _record(recorder, call, code, told)
            left -= 1
            if not left:
                empty.set()

        touched: list[Connection] = []

        def flush() -> None:
            for connection in touched:
                connection.flush()
            touched.clear()

        self._ended = ended
        with generating_cost() as cost:
            begin = perf_counter() + 0.02 if begin is None else begin
            now = perf_counter()
            for number, due in enumerate((begin + arrivals).tolist()):
                if due > now or number % _AT_ONCE == 0:
                    flush()
                    await asyncio.sleep(max(0.0, due - perf_counter()))
                    now = perf_counter()
                touched.append(next(self._turn))
                touched[-1].ask(Call(number, payloads(), due, self._timeout))
            flush()
            if left:
                await empty.wait()
        return load_of(recorder, begin, None, cost())

    async def closed(self, payloads: Payloads, concurrency: int, window: Window) -> Load:
        """Keep ``concurrency`` requests in flight: each sender sends the next one when its last has ended."""
        recorder, ends, left, empty = Recorder(), [0] * concurrency, concurrency, asyncio.Event()

        def ended(call: Call, code: str, told: bytes) -> None:
            nonlocal left
            _record(recorder, call, code, told)
            ends[call.place] += perf_counter() >= steady.begin
            if steady.over():
                left -= 1
                if not left:
                    empty.set()
            else:
                # When all that has come is read, so that a refusal does not follow a refusal in one breath.
                loop.call_soon(ask, call.place)

        def ask(place: int) -> None:
            connection = next(self._turn)
            connection.ask(Call(place, payloads(), perf_counter(), self._timeout))
            connection.flush()

        loop = asyncio.get_running_loop()
        self._ended = ended
        with generating_cost() as cost:
            steady = Steady(window, ends)
            for place in range(concurrency):
                ask(place)
            await empty.wait()
        return load_of(recorder, steady.begin, steady.end, cost())


def _record(recorder: Recorder, call: Call, code: str, told: bytes) -> None:
    # Those that were held back have no second time: only lateness of the generator itself counts as such.
    if code == "OK":
        recorder.answer(call.due, call.sent, perf_counter(), call.place, told)
    else:
        recorder.fail(call.due, call.sent, perf_counter(), call.place, code, told)
