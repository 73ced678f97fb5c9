"""The bare engine: parts of the engine (decoding, forward passes, search) timed in a process without a server.

One thread calls a part again and again, for one query or for a full batch.  These times bound what the server can
reach; what it takes more is spent on transport, queues and threads, and on stages that share the same cores.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import perf_counter, process_time
from typing import Any

from cbir.core.errors import CbirError, ConfigurationError
from cbir.server.bench.load.payloads import Vectors

__all__ = ["PARTS", "BareProcess", "Timed", "bare_process"]

#: The parts that can be timed.  A call of one that ends in "_batch" takes as many queries as a batch may hold.
PARTS = (
    "whole", "decode", "decode_apart", "decode_workers", "forward", "forward_batch", "search", "search_batch",
    "read_memory",
)  # fmt: skip
#: Untimed calls of each part before the timed ones: graphs are compiled and pages touched on first use.
_WARM_UP = 3


@dataclass(frozen=True)
class Timed:
    """The times that calls of one part took.

    Attributes:
        calls: Seconds of each call.
        each: Queries (or images, or bytes) that one call handles.
        core_seconds: CPU time of all calls together, of all threads.
    """

    calls: tuple[float, ...]
    each: int
    core_seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Queries (or images, or bytes) per second."""
        return self.each * len(self.calls) / sum(self.calls)

    @property
    def core_seconds_each(self) -> float:
        """CPU time of a query (or an image, or a byte)."""
        return self.core_seconds / (self.each * len(self.calls))

    @classmethod
    def merged(cls, parts: Sequence[Timed]) -> Timed:
        """The calls of several rounds of the same part."""
        return cls(
            tuple(call for part in parts for call in part.calls), parts[0].each,
            sum(part.core_seconds for part in parts),
        )  # fmt: skip


@dataclass(frozen=True)
class _Refusal:
    """A :class:`CbirError` of the process, in a form that can be sent."""

    message: str
    reason: str


class BareProcess:
    """A handle on the process that holds the bare engine."""

    def __init__(self, pipe: Connection, facts: Mapping[str, Any]) -> None:
        self._pipe = pipe
        #: About the engine: runtimes, device, threads, bytes of the gallery's vectors.
        self.facts = facts

    def measure(self, part: str, seconds: float) -> Timed:
        """Time a part of :data:`PARTS` for about so many seconds, and at least three calls.  Blocks.

        Raises:
            ConfigurationError: ``BENCH_BARE``: the process died.
        """
        self._pipe.send((part, seconds))
        result = _received(
            self._pipe,
            f"the process that times {part!r} alone has died: give this machine more memory, or use --no-limits",
        )
        assert isinstance(result, Timed)
        return result


@contextmanager
def bare_process(
    arguments: Sequence[str], images: Sequence[bytes], vectors: Vectors | None = None
) -> Iterator[BareProcess]:
    """Load an engine in a process of its own, which lives as long as the ``with`` block.

    Args:
        arguments: The arguments of ``cbir serve``, INDEX included; the same engine is loaded.
        images: Bytes of the query images.
        vectors: As for :class:`~cbir.server.bench.bare_engine.BareEngine`.

    Raises:
        CbirError: The engine cannot be loaded.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, list(arguments), list(images), vectors), daemon=True)
    process.start()
    theirs.close()
    try:
        facts = _received(ours, "the process that times the engine alone has died while it loaded: use --no-limits")
        yield BareProcess(ours, facts)
    finally:
        ours.close()
        process.join(10)
        process.kill()
        process.join()


def _work(pipe: Connection, arguments: Sequence[str], images: Sequence[bytes], vectors: Vectors | None) -> None:
    # Imported here because the parent, which generates the load, imports this module too and needs no torch.
    from cbir.server.bench.bare_engine import BareEngine

    try:
        engine = BareEngine.load(arguments, images, vectors)
        pipe.send(engine.facts)
        while True:
            part, seconds = pipe.recv()
            pipe.send(_time(*engine.calls[part], seconds))
    except EOFError:
        return
    except CbirError as error:
        # A CbirError cannot be unpickled, as its constructor has a required keyword argument.
        pipe.send(_Refusal(str(error), error.reason))


def _received(pipe: Connection, died: str) -> Any:
    """What the process sends next.

    Args:
        died: The error message in case the process has ended.

    Raises:
        ConfigurationError: ``BENCH_BARE``, or the reason for which the engine was refused.
    """
    try:
        result = pipe.recv()
    except EOFError:
        raise ConfigurationError(died, reason="BENCH_BARE") from None
    if isinstance(result, _Refusal):
        raise ConfigurationError(result.message, reason=result.reason)
    return result


def _time(call: Callable[[], object], each: int, seconds: float) -> Timed:
    for _ in range(_WARM_UP):
        call()
    times: list[float] = []
    end, spent = perf_counter() + seconds, process_time()
    while len(times) < 3 or perf_counter() < end:
        begun = perf_counter()
        call()
        times.append(perf_counter() - begun)
    return Timed(tuple(times), each, process_time() - spent)
