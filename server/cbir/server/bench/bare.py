"""The limits of the models and of the search: the engine's parts alone, in a process without a server.

The parts are called one after the other by one thread, with as many images as a batch may hold, so that what the server
adds over them is all that is left: transport, queues, threads, and what its stages take from each other.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

from cbir.core.errors import CbirError, ConfigurationError

__all__ = ["PARTS", "Bare", "Timed", "bare"]

#: What can be timed; one call of a "_batch" is as many queries as a batch may hold.
PARTS = (
    "whole", "decode", "decode_workers", "forward", "forward_batch", "search", "search_batch", "read_memory",
)  # fmt: skip
#: Calls of each part before it is timed, as graphs are compiled and pages touched on first use.
_WARM_UP = 3


@dataclass(frozen=True)
class Timed:
    """What a part took.

    Attributes:
        calls: Seconds of each call.
        each: Queries (or images, or bytes) in one call.
    """

    calls: tuple[float, ...]
    each: int

    @property
    def per_second(self) -> float:
        """Queries per second."""
        return self.each * len(self.calls) / sum(self.calls)

    @classmethod
    def merged(cls, parts: Sequence[Timed]) -> Timed:
        """Of several rounds."""
        return cls(tuple(call for part in parts for call in part.calls), parts[0].each)


class Bare:
    """The caller's end of the process."""

    def __init__(self, pipe: Connection, facts: Mapping[str, Any]) -> None:
        self._pipe = pipe
        #: Of the engine: runtimes, device, threads, bytes of the matrix.
        self.facts = facts

    def measure(self, part: str, seconds: float) -> Timed:
        """Time a part of :data:`PARTS` for about as long as that, three calls at least.  Blocks."""
        self._pipe.send((part, seconds))
        try:
            result = self._pipe.recv()
        except EOFError:
            raise ConfigurationError(
                f"the process that times {part!r} alone has died: give this machine more memory, or use --no-limits",
                reason="BENCH_BARE",
            ) from None
        if isinstance(result, Exception):
            raise result
        assert isinstance(result, Timed)
        return result


@contextmanager
def bare(arguments: Sequence[str], images: Sequence[bytes]) -> Iterator[Bare]:
    """Load an engine in a process of its own while the block runs.

    Args:
        arguments: Of ``cbir serve``, INDEX among them: the engine is the one that it would load.
        images: Query images.

    Raises:
        CbirError: It cannot be loaded.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, list(arguments), list(images)), daemon=True)
    process.start()
    theirs.close()
    try:
        try:
            facts = ours.recv()
        except EOFError:
            raise ConfigurationError(
                "the process that times the engine alone has died while it loaded: use --no-limits",
                reason="BENCH_BARE",
            ) from None
        if isinstance(facts, Exception):
            raise facts
        yield Bare(ours, facts)
    finally:
        ours.close()
        process.join(10)
        process.kill()
        process.join()


def _work(pipe: Connection, arguments: Sequence[str], images: Sequence[bytes]) -> None:
    # Here and not above: the process that generates the load needs no torch.
    from cbir.server.bench.bare_engine import BareEngine

    try:
        engine = BareEngine.load(arguments, images)
        pipe.send(engine.facts)
        while True:
            part, seconds = pipe.recv()
            pipe.send(_time(*engine.calls[part], seconds))
    except EOFError:
        return
    except CbirError as error:
        # Exceptions with arguments by name do not travel.
        pipe.send(ConfigurationError(str(error), reason=error.reason))


def _time(call: Callable[[], object], each: int, seconds: float) -> Timed:
    for _ in range(_WARM_UP):
        call()
    times: list[float] = []
    end = perf_counter() + seconds
    while len(times) < 3 or perf_counter() < end:
        begun = perf_counter()
        call()
        times.append(perf_counter() - begun)
    return Timed(tuple(times), each)
