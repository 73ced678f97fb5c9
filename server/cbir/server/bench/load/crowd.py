"""Several generators of one open loop, each in a process of its own: a flood comes from many callers at once.

One process of load has an event loop of its own, which is late where the server's is: what it measures then is itself.
The clock of :func:`time.perf_counter` is the same in all processes of a machine, so they begin together.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.errors import ConfigurationError
from cbir.server.bench.load.frame_generator import FrameGenerator
from cbir.server.bench.load.generator import Load
from cbir.server.bench.load.outcomes import Outcomes
from cbir.server.bench.load.payloads import Payloads

__all__ = ["Crowd"]

#: Seconds that the processes get to hear when they are to begin.
_NOTICE = 0.2
#: Between the numbers of the requests of two processes, so that no two requests are alike.
_APART = 1_000_003


class Crowd:
    """Generators that send one schedule between them.

    Args:
        addresses: ``host:port`` of each server.
        channels: Connections of each generator to each server.
        processes: Generators; 1: in this process.
        timeout: Deadline of every call in seconds.
    """

    def __init__(self, addresses: Sequence[str], channels: int = 1, processes: int = 1, timeout: float = 60.0) -> None:
        self._arguments = (list(addresses), channels, timeout)
        self._processes = processes

    async def scheduled(self, payloads: Payloads, arrivals: NDArray[np.float64]) -> Load:
        """As :meth:`.frame_generator.FrameGenerator.scheduled`; the requests are dealt out in turn.

        Raises:
            ConfigurationError: ``BENCH_GENERATOR``: a process of load has died.
        """
        if self._processes == 1:
            addresses, channels, timeout = self._arguments
            async with FrameGenerator(addresses, channels, timeout) as generator:
                return await generator.scheduled(payloads, arrivals)
        return await asyncio.to_thread(self._scheduled, payloads, arrivals)

    def _scheduled(self, payloads: Payloads, arrivals: NDArray[np.float64]) -> Load:
        context = multiprocessing.get_context("spawn")
        with ExitStack() as running:
            pipes: list[Connection] = []
            for number in range(self._processes):
                ours, theirs = context.Pipe()
                part = arrivals[number :: self._processes]
                own = payloads.beginning_at(number * _APART)
                process = context.Process(target=_work, args=(theirs, self._arguments, own, part), daemon=True)
                process.start()
                running.callback(_end, process)
                theirs.close()
                pipes.append(ours)
            for pipe in pipes:
                _received(pipe)
            begin = perf_counter() + _NOTICE
            for pipe in pipes:
                pipe.send(begin)
            loads: list[Load] = [_received(pipe) for pipe in pipes]
        return Load(
            Outcomes.merged([load.outcomes for load in loads]),
            begin,
            sum(load.generator_seconds for load in loads),
            sum(load.requests for load in loads),
            sum(load.answered for load in loads),
            sum(load.cancelled for load in loads),
            [reply for load in loads for reply in load.replies],
        )


def _work(pipe: Connection, arguments: tuple[list[str], int, float], payloads: Payloads, arrivals: Any) -> None:
    import uvloop

    async def load() -> None:
        addresses, channels, timeout = arguments
        async with FrameGenerator(addresses, channels, timeout) as generator:
            pipe.send(None)
            begin = await asyncio.to_thread(pipe.recv)
            pipe.send(await generator.scheduled(payloads, arrivals, begin))

    uvloop.run(load())


def _received(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise ConfigurationError(
            "a process that generates load has died: use fewer --generators", reason="BENCH_GENERATOR"
        ) from None


def _end(process: Any) -> None:
    process.join(5)
    process.kill()
    process.join()
