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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import EmbeddingCache
from cbir.core.ensemble import Embedder, EnsembleSpec, MemberSpec, Pictures, load_embedder, member_fingerprint
from cbir.core.errors import ImageError
from cbir.core.images import (
    CROP_VERSION,
    Box,
    Crop,
    DecodedImage,
    DecodeLimits,
    Decoder,
    DecodingPool,
    find_content,
    perceptual_hash,
    prepare,
)
from cbir.indexer.build.image_facts import ImageFacts, SkippedImage
from cbir.indexer.build.runner import ImageReader
from cbir.indexer.sources import SourceImage

__all__ = ["EmbeddingRun", "Progress", "RunSettings"]

#: Most CPU seconds for decoding one image; more than in the server, where somebody waits for the answer.
_DECODE_SECONDS = 60.0


@dataclass(frozen=True)
class RunSettings:
    """How an embedding run uses the machine.

    Attributes:
        batch: Images in a forward pass.
        workers: Decoding threads; 0 for one per core.
        commit_seconds: Seconds between commits: the most work that a killed process loses.
        precision: Precision of the models (:func:`cbir.core.ensemble.load_embedder`).  Fingerprints do not include one
            that is asked for, so such a run needs a cache of its own.
    """

    device: str = "auto"
    runtime: str = "auto"
    batch: int = 32
    workers: int = 0
    commit_seconds: float = 2.0
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    precision: str = "auto"


@dataclass(frozen=True)
class Progress:
    """A progress report: images done, images in total, images per second, and seconds left (None if unknown)."""

    stage: str
    done: int
    total: int
    rate: float = 0.0
    seconds_left: float | None = None


@dataclass
class _Decoded:
    facts: ImageFacts
    inputs: dict[tuple[int, str], NDArray[np.uint8]]


class EmbeddingRun:
    """Embeds images with every member of an ensemble, through the cache of one index.

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
        self.fingerprints = {m.name: member_fingerprint(m, ensemble.crop) for m in ensemble.members}
        self._caches = {name: EmbeddingCache(cache, print_) for name, print_ in self.fingerprints.items()}
        # Facts depend only on the crop and the limits of decoding, so all ensembles share them.
        self._facts = EmbeddingCache(cache, f"facts-{ensemble.crop}-{CROP_VERSION}")
        self._embedders: dict[str, Embedder] = {}
        self._loading = threading.Lock()
        self._stopped = threading.Event()
        self._pending: list[_Decoded] = []
        self._vectors: dict[str, tuple[list[bytes], list[NDArray[np.float32]]]] = {m: ([], []) for m in self._caches}
        self._new_facts: dict[bytes, ImageFacts] = {}
        self._committed = time.monotonic()
        #: Digests of the contents that this run embedded with at least one member.
        self.embedded: set[bytes] = set()

    def known(self, sha256: bytes) -> bool:
        """Whether the cache holds everything about the image with this digest."""
        return sha256 in self._facts and all(sha256 in cache for cache in self._caches.values())

    def facts(self, sha256: bytes) -> ImageFacts:
        """The facts of an image that is :meth:`known`."""
        return ImageFacts.from_row(sha256, self._facts.get([sha256])[0])

    def raw(self, member: str, digests: Sequence[bytes]) -> NDArray[np.float32]:
        """(N, D) unit vectors of a member before projection, in the order of the digests."""
        return np.asarray(self._caches[member].get(digests), dtype=np.float32)

    def run(
        self, images: Sequence[SourceImage], reader: ImageReader
    ) -> tuple[dict[str, ImageFacts], list[SkippedImage]]:
        """Embed images.

        Returns:
            The facts of the embedded images by id, and the images that were left out.

        Raises:
            KeyboardInterrupt: The user interrupted; finished work was committed.
        """
        self._stopped.clear()
        facts: dict[str, ImageFacts] = {}
        skipped: list[SkippedImage] = []
        workers = self.settings.workers or os.cpu_count() or 1
        started = time.monotonic()
        todo = iter(images)
        flight: deque[tuple[SourceImage, Future[_Decoded | bytes]]] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        decoding = DecodingPool(
            workers, seconds=_DECODE_SECONDS, max_pixels=self.settings.limits.max_pixels, niceness=0
        )
        self._decoder = self._given_decoder or decoding
        try:
            while True:
                while len(flight) < 2 * self.settings.batch + workers and (image := next(todo, None)) is not None:
                    flight.append((image, pool.submit(self._decode, image, reader)))
                if not flight:
                    break
                image, future = flight.popleft()
                try:
                    facts[image.id] = self._take(future.result())
                except ImageError as error:
                    skipped.append(SkippedImage(image.uri, str(error), error.reason, image.stamp))
                done = len(facts) + len(skipped)
                rate = done / max(1e-9, time.monotonic() - started)
                self._report(Progress("embed", done, len(images), rate, (len(images) - done) / max(rate, 1e-9)))
            self._forward()
        finally:
            # On Ctrl-C too: embeddings are kept, queued images are dropped, and no further model is loaded.
            self._stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            decoding.close()
            self._commit()
        return facts, skipped

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
        if self.known(digest):
            return digest
        decoded = self._decoder.decode(data, self.settings.limits, lambda: not self._stopped.is_set())
        facts, box = _look(digest, decoded, self.ensemble.crop)
        # Models are loaded only now: a run in which every image is known or bad loads none.
        if len(self._embedders) < len(self.ensemble.members):
            self._load()
        inputs: dict[tuple[int, str], NDArray[np.uint8]] = {}
        for member in self._missing(digest):
            if self._stopped.is_set():
                break  # the run was stopped and does not need the result
            embedder = self._embedders[member.name]
            spec = (embedder.size, embedder.interpolation)
            if spec not in inputs:
                inputs[spec] = prepare(decoded.pixels, box, *spec)
        return _Decoded(facts, inputs)

    def _missing(self, digest: bytes) -> Iterable[MemberSpec]:
        return (m for m in self.ensemble.members if digest not in self._caches[m.name])

    def _take(self, result: _Decoded | bytes) -> ImageFacts:
        if isinstance(result, bytes):
            return self.facts(result)
        digest = result.facts.sha256
        if digest not in self._new_facts and not self.known(digest):
            # The same bytes may come twice before they are committed; they are embedded once.
            self._new_facts[digest] = result.facts
            self._pending.append(result)
            if len(self._pending) >= self.settings.batch:
                self._forward()
        return result.facts

    def _forward(self) -> None:
        for member in self.ensemble.members:
            embedder = self._embedders.get(member.name)
            rows = [p for p in self._pending if p.facts.sha256 not in self._caches[member.name]]
            if embedder is None or not rows:
                continue
            batch = np.stack([p.inputs[embedder.size, embedder.interpolation] for p in rows])
            keys, vectors = self._vectors[member.name]
            vectors.append(embedder.embed(batch))
            keys.extend(p.facts.sha256 for p in rows)
            self.embedded.update(p.facts.sha256 for p in rows)
        self._pending.clear()
        if time.monotonic() - self._committed >= self.settings.commit_seconds:
            self._commit()

    def _commit(self) -> None:
        for member, (keys, vectors) in self._vectors.items():
            if keys:
                self._caches[member].put(keys, np.concatenate(vectors).astype(np.float16))
                keys.clear()
                vectors.clear()
        # Facts are written last: their presence means that the members' rows are complete.
        waiting = {p.facts.sha256: p.facts for p in self._pending}
        ready = [f for d, f in self._new_facts.items() if d not in waiting]
        self._facts.put([f.sha256 for f in ready], np.array([f.to_row() for f in ready], np.int64))
        self._new_facts = waiting
        self._committed = time.monotonic()

    def compact(self) -> None:
        """Compact the cache; to be called at the end of a run, while the index's lock is held."""
        for cache in (*self._caches.values(), self._facts):
            cache.compact()


def _look(digest: bytes, decoded: DecodedImage, crop: Crop) -> tuple[ImageFacts, Box]:
    """The facts of an image, with its crop box on the upright original, and the box on the decoded pixels."""
    box = find_content(decoded.pixels, crop)
    height, width = decoded.pixels.shape[:2]
    original = box.scaled(decoded.width / width, decoded.height / height)
    facts = ImageFacts(digest, decoded.width, decoded.height, original, perceptual_hash(decoded.pixels, box))
    return facts, box
