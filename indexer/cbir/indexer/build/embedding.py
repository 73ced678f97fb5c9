"""The embedding run: images are read and cropped in threads, and those that are new are embedded and cached.

Each thread has its images decoded by a worker process, so that no file can end the run: one that takes too long or
kills its decoder is left out like any other that cannot be read.  The number of decoded images waiting is bounded;
finished embeddings are committed to the cache every few seconds.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbir.core.ensemble import Embedder, EnsembleSpec, Pictures, load_embedder
from cbir.core.errors import ImageError
from cbir.core.images import (
    Box,
    Crop,
    DecodedImage,
    Decoder,
    DecodingPool,
    find_content,
    perceptual_hash,
    prepare,
)
from cbir.indexer.build.image_facts import ImageFacts, SkippedImage
from cbir.indexer.build.raw_embeddings import RawEmbeddings
from cbir.indexer.build.runner import EmbeddedBlock, ImageReader, Progress, RunSettings
from cbir.indexer.sources import SourceImage

__all__ = ["EmbeddingRun", "decoding_pool"]

#: Most images of a block.
_BLOCK = 4096
#: Most CPU seconds for decoding one image; more than in the server, where somebody waits for the answer.
_DECODE_SECONDS = 60.0


@dataclass
class _Decoded:
    facts: ImageFacts
    inputs: dict[tuple[int, str], NDArray[np.uint8]]


def decoding_pool(settings: RunSettings) -> DecodingPool:
    """Processes that decode the images of a run."""
    workers = settings.workers or os.cpu_count() or 1
    return DecodingPool(workers, seconds=_DECODE_SECONDS, max_pixels=settings.limits.max_pixels, niceness=0)


class EmbeddingRun:
    """Embeds images with every member of an ensemble; implements :class:`cbir.indexer.build.Runner` on this machine.

    Models are loaded when the first image needs them, so a run that finds everything in the cache loads none.

    Args:
        pictures: Images on which int8 quantisation is calibrated.
        decoder: Where images are decoded; None: in workers of this run.
    """

    def __init__(
        self,
        ensemble: EnsembleSpec,
        cache: Path,
        settings: RunSettings,
        on_progress: Callable[[Progress], None] | None = None,
        pictures: Pictures | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        self.ensemble, self.settings, self._pictures = ensemble, settings, pictures
        self._given_decoder = decoder
        self._report = on_progress or (lambda _: None)
        self.embeddings = RawEmbeddings(cache, ensemble)
        self._embedders: dict[str, Embedder] = {}
        self._loading = threading.Lock()
        self._stopped = threading.Event()
        #: Decoded, and not yet embedded.
        self._pending: list[_Decoded] = []
        #: Embedded, and not yet in the cache.
        self._vectors: dict[str, tuple[list[bytes], list[NDArray[np.float32]]]] = {}
        self._new_facts: dict[bytes, ImageFacts] = {}
        #: What the next block tells.
        self._done: list[tuple[SourceImage, ImageFacts]] = []
        self._skipped: list[SkippedImage] = []
        self._fresh: set[bytes] = set()

    def run(self, images: Iterable[SourceImage], reader: ImageReader, total: int = 0) -> Iterator[EmbeddedBlock]:
        """See :class:`cbir.indexer.build.Runner`."""
        self._stopped.clear()
        workers = self.settings.workers or os.cpu_count() or 1
        started = committed = time.monotonic()
        count, todo = 0, iter(images)
        flight: deque[tuple[SourceImage, Future[_Decoded | bytes]]] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        decoding = decoding_pool(self.settings) if self._given_decoder is None else None
        decoder = self._given_decoder or decoding
        assert decoder is not None
        self._decoder: Decoder = decoder
        try:
            while True:
                while len(flight) < 2 * self.settings.batch + workers and (image := next(todo, None)) is not None:
                    flight.append((image, pool.submit(self._decode, image, reader)))
                if not flight:
                    break
                image, future = flight.popleft()
                try:
                    self._done.append((image, self._take(future.result())))
                except ImageError as error:
                    self._skipped.append(SkippedImage(image.uri, str(error), error.reason, image.stamp))
                count += 1
                rate = count / max(1e-9, time.monotonic() - started)
                left = (total - count) / max(rate, 1e-9) if total else None
                self._report(Progress("embed", count, total, rate, left))
                full = len(self._done) + len(self._skipped) >= _BLOCK
                if full:
                    self._forward()
                # Otherwise a block ends with a batch.
                if not self._pending and (full or time.monotonic() - committed >= self.settings.commit_seconds):
                    yield self._commit()
                    committed = time.monotonic()
            self._forward()
            if self._done or self._skipped:
                yield self._commit()
        finally:
            # On Ctrl-C too: embeddings are kept, queued images are dropped, and no further model is loaded.
            self._stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            if decoding is not None:
                decoding.close()
            self._commit()
            self._pending.clear()
            self._new_facts.clear()

    def _load(self) -> None:
        with self._loading:
            for i, member in enumerate(self.ensemble.members):
                if member.name not in self._embedders and not self._stopped.is_set():
                    self._report(Progress(f"load {member.name}", i, len(self.ensemble.members)))
                    settings = self.settings
                    self._embedders[member.name] = load_embedder(
                        member, settings.device, settings.runtime, settings.precision, self._pictures
                    )

    def _decode(self, image: SourceImage, reader: ImageReader) -> _Decoded | bytes:
        """Runs in a worker thread: returns the prepared inputs, or only the digest if the cache holds the image."""
        data = reader.read(image)
        digest = hashlib.sha256(data).digest()
        if self.embeddings.known(digest):
            return digest
        # Models are loaded only now: a run in which every image is known loads none.
        if len(self._embedders) < len(self.ensemble.members):
            self._load()
        limits = self.settings.limits.for_inputs([embedder.size for embedder in self._embedders.values()])
        decoded = self._decoder.decode(data, limits, lambda: not self._stopped.is_set())
        facts, box = _look(digest, decoded, self.ensemble.crop)
        inputs: dict[tuple[int, str], NDArray[np.uint8]] = {}
        for name in self.embeddings.missing(digest):
            if self._stopped.is_set():
                break  # the run was stopped and does not need the result
            embedder = self._embedders[name]
            spec = (embedder.size, embedder.interpolation)
            if spec not in inputs:
                inputs[spec] = prepare(decoded.pixels, box, *spec)
        return _Decoded(facts, inputs)

    def _take(self, result: _Decoded | bytes) -> ImageFacts:
        if isinstance(result, bytes):
            return self.embeddings.facts(result)
        digest = result.facts.sha256
        if digest not in self._new_facts and not self.embeddings.known(digest):
            # The same bytes may come twice before they are committed; they are embedded once.
            self._new_facts[digest] = result.facts
            self._pending.append(result)
            if len(self._pending) >= self.settings.batch:
                self._forward()
        return result.facts

    def _forward(self) -> None:
        for name, embedder in self._embedders.items():
            rows = [p for p in self._pending if (embedder.size, embedder.interpolation) in p.inputs]
            rows = [p for p in rows if name in self.embeddings.missing(p.facts.sha256)]
            if not rows:
                continue
            batch = np.stack([p.inputs[embedder.size, embedder.interpolation] for p in rows])
            keys, vectors = self._vectors.setdefault(name, ([], []))
            vectors.append(embedder.embed(batch))
            keys.extend(p.facts.sha256 for p in rows)
            self._fresh.update(p.facts.sha256 for p in rows)
        self._pending.clear()

    def _commit(self) -> EmbeddedBlock:
        """Bring what is embedded into the cache, and tell of it."""
        embedded = {name: (keys, np.concatenate(vectors)) for name, (keys, vectors) in self._vectors.items()}
        self._vectors = {}
        waiting = {p.facts.sha256 for p in self._pending}
        ready = {digest: facts for digest, facts in self._new_facts.items() if digest not in waiting}
        files = self.embeddings.put(embedded, list(ready.values()))
        block = EmbeddedBlock(tuple(self._done), tuple(self._skipped), frozenset(self._fresh), tuple(files))
        self._new_facts = {digest: f for digest, f in self._new_facts.items() if digest not in ready}
        self._done, self._skipped, self._fresh = [], [], set()
        return block


def _look(digest: bytes, decoded: DecodedImage, crop: Crop) -> tuple[ImageFacts, Box]:
    """The facts of an image, with its crop box on the upright original, and the box on the decoded pixels."""
    box = find_content(decoded.pixels, crop)
    height, width = decoded.pixels.shape[:2]
    original = box.scaled(decoded.width / width, decoded.height / height)
    facts = ImageFacts(digest, decoded.width, decoded.height, original, perceptual_hash(decoded.pixels, box))
    return facts, box
