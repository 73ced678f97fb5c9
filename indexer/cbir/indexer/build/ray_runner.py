"""Embedding on a cluster, by Ray Data.  Ray starts workers, spreads batches over them, and repeats those of workers
that died; what a batch gave is in the cache, or at the shared address, before it counts as done.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cbir.core.artifacts import EmbeddingCache
from cbir.core.ensemble import EnsembleSpec
from cbir.core.errors import ConfigurationError, EnsembleError
from cbir.indexer.build.embed_stage import SEEN, EmbedStage, Stage, seen_key
from cbir.indexer.build.image_facts import ImageFacts, SkippedImage
from cbir.indexer.build.raw_embeddings import RawEmbeddings
from cbir.indexer.build.runner import EmbeddedBlock, ImageReader, Progress, RunSettings
from cbir.indexer.build.shared_blocks import SharedBlocks
from cbir.indexer.sources import SourceImage

__all__ = ["RayRunner"]

#: Images that are handed to Ray at a time, in tens of megabytes; workers and their models are started for each.
_WAVE = 2**18


class RayRunner:
    """Implements :class:`cbir.indexer.build.Runner` on a Ray cluster, or on one that it starts on this machine.

    Raises:
        ConfigurationError: ``EXTRA_MISSING``.
    """

    def __init__(
        self,
        ensemble: EnsembleSpec,
        cache: Path,
        settings: RunSettings,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ConfigurationError(
                "--runner ray needs the package ray: pip install 'ensemble-cbir[ray]'", reason="EXTRA_MISSING"
            )
        self._ensemble, self._settings = ensemble, settings
        self._report = on_progress or (lambda _: None)
        self.embeddings = RawEmbeddings(cache.absolute(), ensemble)
        self._seen = EmbeddingCache(cache.absolute(), SEEN)
        blocks = settings.ray.blocks
        self._shared = SharedBlocks(blocks) if blocks else None

    def run(self, images: Iterable[SourceImage], reader: ImageReader, total: int = 0) -> Iterator[EmbeddedBlock]:
        """See :class:`cbir.indexer.build.Runner`."""
        started, count = time.monotonic(), 0
        if self._shared is not None:
            # What workers left there before this machine died.
            self._take_in(self._shared.names())
        # Batches are cut before what is known is left out: run again, they are the same batches.
        batches = enumerate(_batched(images, self._settings.batch))
        with _cluster(self._settings.ray.address):
            while wave := list(itertools.islice(batches, max(1, _WAVE // self._settings.batch))):
                todo: dict[int, Sequence[SourceImage]] = {}
                for number, batch in wave:
                    known = {image.id: facts for image in batch if (facts := self._known(image)) is not None}
                    if known:
                        pairs = tuple((image, known[image.id]) for image in batch if image.id in known)
                        yield EmbeddedBlock(pairs, (), frozenset())
                        count += len(pairs)
                    if len(known) < len(batch):
                        todo[number] = [image for image in batch if image.id not in known]
                for block in self._embed(todo, reader) if todo else ():
                    count += len(block.images) + len(block.skipped)
                    rate = count / max(1e-9, time.monotonic() - started)
                    self._report(Progress("embed", count, total, rate, (total - count) / rate if total else None))
                    yield block

    def _known(self, image: SourceImage) -> ImageFacts | None:
        key = seen_key(image)
        if key not in self._seen:
            return None
        digest = self._seen.get([key])[0].tobytes()
        return self.embeddings.facts(digest) if self.embeddings.known(digest) else None

    def _embed(self, batches: dict[int, Sequence[SourceImage]], reader: ImageReader) -> Iterator[EmbeddedBlock]:
        import pyarrow as pa
        import ray.data

        tables = [
            pa.table(
                {
                    "batch": [number] * len(batch),
                    "place": range(len(batch)),
                    "id": [image.id for image in batch],
                    "uri": [image.uri for image in batch],
                    "stamp": [image.stamp for image in batch],
                }
            )
            for number, batch in batches.items()
        ]
        ray_settings = self._settings.ray
        stage = Stage(
            self._ensemble, self.embeddings.folder, self._settings.for_a_worker(), reader, ray_settings.blocks
        )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        size = {"size": ray_settings.workers} if ray_settings.workers else {"min_size": 1, "max_size": None}
        # Blocks are the batches, so that one task is one batch.  Ray Data starts workers that died again, with their
        # tasks, as often as it takes.
        answers = ray.data.from_arrow(tables).map_batches(
            EmbedStage, fn_constructor_args=(stage,), batch_size=None, batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(**size), num_cpus=ray_settings.cpus, num_gpus=ray_settings.gpus or None,
        )  # fmt: skip
        for row in answers.iter_rows():
            answer = json.loads(row["answer"])
            yield self._block(answer, batches[answer["batch"]])

    def _block(self, answer: dict[str, Any], batch: Sequence[SourceImage]) -> EmbeddedBlock:
        if answer["failed"]:
            raise EnsembleError(f"a worker of Ray cannot embed: {answer['failed']}", reason="WORKER_FAILED")
        self._take_in(answer["files"])
        known = [(batch[place], bytes.fromhex(digest)) for place, digest in answer["images"]]
        return EmbeddedBlock(
            tuple((image, self.embeddings.facts(digest)) for image, digest in known),
            tuple(
                SkippedImage(batch[place].uri, reason, code, batch[place].stamp)
                for place, reason, code in answer["skipped"]
            ),
            frozenset(bytes.fromhex(digest) for digest in answer["fresh"]),
            tuple(answer["files"]),
        )

    def _take_in(self, files: list[str]) -> None:
        if self._shared is not None:
            files = self._shared.fetch(self.embeddings.folder, files)
        self.embeddings.take_in(files)
        for file in files:
            if file.startswith(f"{SEEN}/"):
                self._seen.take_in(file.removeprefix(f"{SEEN}/"))


def _batched(images: Iterable[SourceImage], size: int) -> Iterator[list[SourceImage]]:
    left = iter(images)
    while batch := list(itertools.islice(left, size)):
        yield batch


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Be connected to a cluster; one that this process is connected to already is used, and stays."""
    # Imported here, as it takes seconds; and nobody is told that it runs.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"no cluster of Ray answers at {address} ({' '.join(str(error).split())[:200]}): check --ray-address and "
            "that `ray status` works there",
            reason="RAY_UNAVAILABLE",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
