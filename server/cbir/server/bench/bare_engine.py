"""The parts of an engine as functions that can be timed one by one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cbir.core.ensemble import embed_all
from cbir.core.images import DecodedImage, DecodeLimits, DecodingPool, decode_image, find_content, prepare
from cbir.server.bench.load.payloads import Vectors
from cbir.server.deployment import add_arguments, engine_config
from cbir.server.engine import Embedding, Engine, EngineQuery, InputForm
from cbir.server.limits import Limits

__all__ = ["BareEngine"]

#: Size of the array that is read to measure memory bandwidth: far larger than any cache.
_MEMORY_BYTES = 256 * 2**20

Inputs = dict[InputForm, NDArray[np.uint8]]


class BareEngine:
    """An engine whose parts can be called separately.

    Args:
        images: Bytes of the query images.
        vectors: By member, (K, dim) embeddings to search with, as the load does; None: those of the images.  How long a
            search takes depends on them: what resembles nothing in the gallery takes longest.

    Attributes:
        calls: By part (:data:`cbir.server.bench.bare_process.PARTS`): a function, and how many queries (or images, or
            bytes) one call of it handles.
    """

    def __init__(self, engine: Engine, limits: Limits, images: Sequence[bytes], vectors: Vectors | None = None) -> None:
        self._engine, self._limits, self._images = engine, limits, images
        self._crop = engine.info.crop
        self._turn = count()
        self._forms = {name: (e.size, e.interpolation) for name, e in engine.embedders.items()}
        self._decode_limits = limits.decode.for_inputs(side for side, _ in self._forms.values())
        batch = limits.max_batch
        inputs = [self._decode() for _ in range(batch)]
        stacked = {form: np.stack([one[form] for one in inputs]) for form in inputs[0]}
        first = {form: pixels[:1].copy() for form, pixels in stacked.items()}
        raw = vectors or self._forward(stacked)
        queries = [
            engine.prepare(EngineQuery(Embedding({name: several[i % len(several)] for name, several in raw.items()})))
            for i in range(batch)
        ]
        workers = limits.decoders
        pool = ThreadPoolExecutor(workers)
        several = 8 * workers
        # As the server does it: in processes of their own, which cost an image the way there and back.
        apart = DecodingPool(workers, max_pixels=limits.max_pixels)
        memory = torch.ones(_MEMORY_BYTES // 4)
        self.calls: dict[str, tuple[Callable[[], object], int]] = {
            "whole": (self._whole, 1),
            "decode": (self._decode, 1),
            "decode_apart": (partial(self._decode, apart.decode), 1),
            "decode_workers": (lambda: list(pool.map(lambda _: self._decode(), range(several))), several),
            "forward": (lambda: self._forward(first), 1),
            "forward_batch": (lambda: self._forward(stacked), batch),
            "search": (lambda: engine.answer(queries[:1]), 1),
            "search_batch": (lambda: engine.answer(queries), batch),
            "read_memory": (memory.sum, _MEMORY_BYTES),
        }

    @classmethod
    def load(cls, arguments: Sequence[str], images: Sequence[bytes], vectors: Vectors | None = None) -> BareEngine:
        """Load the engine that ``cbir serve`` with these arguments would load.

        Raises:
            CbirError: It cannot be loaded.
        """
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        config = engine_config(parser.parse_args(arguments))
        return cls(config.load(), config.limits, images, vectors)

    @property
    def facts(self) -> dict[str, Any]:
        """Runtimes, threads, device, and the size of the gallery's vectors on disk in bytes."""
        info = self._engine.info
        facts: dict[str, Any] = {
            "runtimes": {member.name: member.runtime for member in info.members},
            # As float16 on disk; in memory they may be float32.
            "matrix_bytes": 2 * info.images * sum(member.dim for member in info.members),
            "max_batch": self._limits.max_batch,
            "decoders": self._limits.decoders,
            "torch": torch.__version__,
            "torch_threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        }
        if torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name()
        return facts

    def _decode(self, decode: Callable[[bytes, DecodeLimits], DecodedImage] = decode_image) -> Inputs:
        """Decode, crop and resize the next image."""
        data = self._images[next(self._turn) % len(self._images)]
        pixels = decode(data, self._decode_limits).pixels
        box = find_content(pixels, self._crop)
        return {form: prepare(pixels, box, *form) for form in dict.fromkeys(self._forms.values())}

    def _forward(self, inputs: Mapping[InputForm, NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        return embed_all(self._engine.embedders, inputs)

    def _whole(self) -> None:
        """Answer one image query, from its bytes to its hits."""
        raw = self._forward({form: pixels[None] for form, pixels in self._decode().items()})
        query = EngineQuery(Embedding({name: vectors[0] for name, vectors in raw.items()}))
        self._engine.answer([self._engine.prepare(query)])
