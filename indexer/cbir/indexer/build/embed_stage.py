"""The embed stage as a class that Ray Data maps over a cluster: each worker embeds whole batches and commits them.

It is the local run, batch by batch, so the embeddings are those of one machine.  A batch is in the cache, or at the
shared address, before Ray learns that it is done.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from cbir.core.artifacts import EmbeddingCache
from cbir.core.ensemble import EnsembleSpec
from cbir.core.errors import CbirError
from cbir.core.version import __version__
from cbir.indexer.build.embedding import EmbeddingRun, decoding_pool
from cbir.indexer.build.runner import ImageReader, RunSettings, gathered
from cbir.indexer.build.shared_blocks import SharedBlocks
from cbir.indexer.sources import SourceImage

__all__ = ["SEEN", "EmbedStage", "Stage", "seen_key"]

#: Folder of the cache that tells which contents images had when they were embedded.
SEEN = "seen"


def seen_key(image: SourceImage) -> bytes:
    """What an image is known by without reading it: its place and its stamp."""
    return hashlib.sha256(f"{len(image.uri)}:{image.uri}{image.stamp}".encode()).digest()


@dataclass(frozen=True)
class Stage:
    """What every worker is given.

    Attributes:
        cache: The index's cache, where all machines see the same folder.
        blocks: Address at which blocks are left where they do not; None: in the cache.
        version: Of the program that started the run.
    """

    ensemble: EnsembleSpec
    cache: Path
    settings: RunSettings
    reader: ImageReader
    blocks: str | None = None
    version: str = __version__


class EmbedStage:
    """Embeds batches of images.

    Errors of the user's are part of the answer: Ray would wrap them in its own, and try again.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage, self._failed = stage, ""
        self._run: EmbeddingRun | None = None
        self._shared: SharedBlocks | None = None
        if stage.version != __version__:
            self._failed = f"a worker has ensemble-cbir {__version__}, this machine {stage.version}: install one on all"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embed a batch.

        Args:
            batch: Columns ``batch`` (its number), ``place``, ``id``, ``uri`` and ``stamp`` of the images.

        Returns:
            ``answer``: one JSON object, so that rows of all batches have the same columns.  It holds ``batch``; the
            ``images`` that are embedded, each its place and digest; the digests of ``fresh`` contents; ``skipped``
            places with reason and code; the ``files`` written; and ``failed``, why nothing was done, or nothing.
        """
        images = [
            SourceImage(str(name), str(uri), None, str(stamp))
            for name, uri, stamp in zip(batch["id"], batch["uri"], batch["stamp"], strict=True)
        ]
        row: dict[str, Any] = {
            "batch": int(batch["batch"][0]), "images": [], "fresh": [], "skipped": [], "files": [],
            "failed": self._failed,
        }  # fmt: skip
        if not self._failed:
            try:
                self._embed(images, [int(place) for place in batch["place"]], row)
            except CbirError as error:
                row["failed"] = str(error)
        return {"answer": np.array([json.dumps(row)])}

    def _embed(self, images: list[SourceImage], places: list[int], row: dict[str, Any]) -> None:
        run = self._runner()
        place = {image.id: at for image, at in zip(images, places, strict=True)}
        blocks = list(run.run(images, self._stage.reader, len(images)))
        facts, _, fresh = gathered(blocks)
        done = [image for image in images if image.id in facts]
        # Several images may have one file; those left out come in the order of the batch.
        out = [image for image in images if image.id not in facts]
        skipped = [one for block in blocks for one in block.skipped]
        digests = [facts[image.id].sha256 for image in done]
        row["images"] = [[place[image.id], digest.hex()] for image, digest in zip(done, digests, strict=True)]
        row["fresh"] = sorted(digest.hex() for digest in fresh)
        row["skipped"] = [[place[i.id], one.reason, one.code] for i, one in zip(out, skipped, strict=True)]
        files = [file for block in blocks for file in block.files]
        seen = self._seen.put(
            [seen_key(image) for image in done], np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
        )
        if seen is not None:
            files.append(f"{SEEN}/{seen.name}")
        if self._shared is not None:
            self._shared.send(run.embeddings.folder, files)
        row["files"] = files

    def _runner(self) -> EmbeddingRun:
        if self._run is None:
            stage = self._stage
            folder = stage.cache
            if stage.blocks is not None:
                self._shared = SharedBlocks(stage.blocks)
                self._own = TemporaryDirectory(prefix="cbir-blocks-")
                folder = Path(self._own.name)
            # A block a batch, so that a worker that dies takes no finished batch with it.
            settings = replace(stage.settings, commit_seconds=float("inf"))
            self._seen = EmbeddingCache(folder, SEEN)
            self._run = EmbeddingRun(stage.ensemble, folder, settings, decoder=decoding_pool(settings))
        return self._run
