"""The limits of the models and of the search: the engine's parts alone, in a process without a server.

The parts are called one after the other by one thread, with as many images as a batch may hold, so that what the server
adds over them is all that is left: transport, queues, threads, and what its stages take from each other.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.crop import find_content
from cbir.core.decode import decode_image
from cbir.core.embedder import prepare
from cbir.core.errors import CbirError, ConfigurationError
from cbir.server.deployment import EngineConfig
from cbir.server.engine import Engine
from cbir.server.preparation import InputForm
from cbir.server.query import Embedding, EngineQuery

__all__ = ["PARTS", "Bare", "Timed", "bare"]

#: What can be timed; one call of a "_batch" is as many queries as a batch may hold.
PARTS = (
    "whole", "decode", "decode_workers", "forward", "forward_batch", "search", "search_batch", "read_memory",
)  # fmt: skip
#: Bytes that are read to measure the memory's bandwidth: far more than caches hold.
_MEMORY_BYTES = 256 * 2**20
#: Calls of each part before it is timed, as graphs are compiled and pages touched on first use.
_WARM_UP = 3

Inputs = dict[InputForm, NDArray[np.uint8]]


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
def bare(config: EngineConfig, images: Sequence[bytes]) -> Iterator[Bare]:
    """Load an engine in a process of its own while the block runs.

    Args:
        images: Query images.

    Raises:
        CbirError: It cannot be loaded.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, config, list(images)), daemon=True)
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


def _work(pipe: Connection, config: EngineConfig, images: Sequence[bytes]) -> None:
    try:
        engine = config.load()
        parts = _Parts(engine, config, images)
        pipe.send(_facts(engine))
        while True:
            part, seconds = pipe.recv()
            pipe.send(_time(*parts.calls[part], seconds))
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


class _Parts:
    """The parts as calls, and how many queries each holds."""

    def __init__(self, engine: Engine, config: EngineConfig, images: Sequence[bytes]) -> None:
        import torch

        self._engine, self._config, self._images = engine, config, images
        self._crop = engine.info.crop
        self._turn = count()
        self._forms = {name: (e.size, e.interpolation) for name, e in engine.embedders.items()}
        batch = config.limits.max_batch
        inputs = [self._decode() for _ in range(batch)]
        stacked = {form: np.stack([one[form] for one in inputs]) for form in inputs[0]}
        first = {form: pixels[:1].copy() for form, pixels in stacked.items()}
        raw = self._forward(stacked)
        queries = [
            engine.prepare(EngineQuery(Embedding({name: vectors[i] for name, vectors in raw.items()})))
            for i in range(batch)
        ]
        workers = config.limits.decoders
        pool = ThreadPoolExecutor(workers)
        several = 8 * workers
        memory = torch.ones(_MEMORY_BYTES // 4)
        self.calls: dict[str, tuple[Callable[[], object], int]] = {
            "whole": (self._whole, 1),
            "decode": (self._decode, 1),
            "decode_workers": (lambda: list(pool.map(lambda _: self._decode(), range(several))), several),
            "forward": (lambda: self._forward(first), 1),
            "forward_batch": (lambda: self._forward(stacked), batch),
            "search": (lambda: engine.answer(queries[:1]), 1),
            "search_batch": (lambda: engine.answer(queries), batch),
            "read_memory": (memory.sum, _MEMORY_BYTES),
        }

    def _decode(self) -> Inputs:
        """Decode, crop and resize the next image, as the core does it."""
        data = self._images[next(self._turn) % len(self._images)]
        pixels = decode_image(data, self._config.limits.decode).pixels
        box = find_content(pixels, self._crop)
        return {form: prepare(pixels, box, *form) for form in dict.fromkeys(self._forms.values())}

    def _forward(self, inputs: Mapping[InputForm, NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        return {name: embedder.embed(inputs[self._forms[name]]) for name, embedder in self._engine.embedders.items()}

    def _whole(self) -> None:
        """One image from its bytes to its hits."""
        raw = self._forward({form: pixels[None] for form, pixels in self._decode().items()})
        query = EngineQuery(Embedding({name: vectors[0] for name, vectors in raw.items()}))
        self._engine.answer([self._engine.prepare(query)])


def _facts(engine: Engine) -> dict[str, Any]:
    import torch

    info = engine.info
    facts: dict[str, Any] = {
        "runtimes": {member.name: member.runtime for member in info.members},
        # As they lie on disk; what the engine holds in memory may be wider.
        "matrix_bytes": 2 * info.images * sum(member.dim for member in info.members),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts
