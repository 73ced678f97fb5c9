"""The rows of the next version, put together from the live version's and from what was read in this run.

N images of the next version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cbir.core.artifacts import GALLERY_SCHEMA, GalleryImage, IndexVersion, gallery_batches, read_gallery, write_gallery
from cbir.indexer.build.image_facts import ImageFacts
from cbir.indexer.build.plan import LEFT_OUT, Plan
from cbir.indexer.sources import SourceImage

__all__ = ["PlannedGallery"]

_PIECE = 8192


class PlannedGallery:
    """The gallery of the next version, of which no more than a few thousand rows are held.

    Args:
        plan: Finished.
        live: The version whose rows are taken over; None: none are.
        facts: Gives the facts of images, in the order of (n, 32) digests.

    Attributes:
        digests: (N, 32) SHA-256 of the images' bytes.
        live_rows: (N,) the row of ``live`` that an image has kept, -1 for others.
        labels: The distinct labels, sorted; known once the gallery is written.
        label_codes: (N,) position of each image's label in these, -1 without one.
    """

    def __init__(
        self,
        plan: Plan,
        count: int,
        live: IndexVersion | None,
        facts: Callable[[NDArray[np.uint8]], list[ImageFacts]],
    ) -> None:
        self._plan, self._live, self._facts, self._count = plan, live, facts, count
        self.digests: NDArray[np.uint8] = plan.array("next-digests", "u1", (count, 32))
        self.live_rows: NDArray[np.int64] = plan.array("next-rows", "i8", (count,))
        self.labels: list[str] = []
        self.label_codes: NDArray[np.int32] = plan.array("next-labels", "i4", (count,))

    def __len__(self) -> int:
        return self._count

    def write(self, path: Path) -> None:
        """Write ``images.parquet``."""
        write_gallery(path, self._batches())
        self._read_labels(path)

    def _batches(self) -> Iterator[Any]:
        live, done = _LiveTable(self._live), 0
        for start in range(0, self._plan.count, _PIECE):
            stop = min(start + _PIECE, self._plan.count)
            rows, digests = self._plan.rows[start:stop], self._plan.digests[start:stop]
            there = np.flatnonzero(rows != LEFT_OUT)
            if not len(there):
                continue
            kept = rows[there] >= 0 if self._live is not None else np.zeros(len(there), np.bool_)
            parts = [live.take(rows[there[kept]])] if kept.any() else []
            if not kept.all():
                new = there[~kept]
                parts.append(self._new(start, stop, {*new.tolist()}, digests[new]))
            batch = pa.concat_tables(parts).combine_chunks()
            # Kept rows stand before new ones: each goes to its place.
            order = np.empty(len(there), np.int64)
            order[np.argsort(~kept, kind="stable")] = np.arange(len(there))
            here = slice(done, done + len(there))
            self.digests[here] = digests[there]
            self.live_rows[here] = np.where(kept, rows[there], -1)
            done += len(there)
            yield from batch.take(pa.array(order)).combine_chunks().to_batches()

    def _new(self, start: int, stop: int, wanted: set[int], digests: NDArray[np.uint8]) -> Any:
        images = [image for place, image in self._plan.between(start, stop) if place - start in wanted]
        rows = (_row(image, facts) for image, facts in zip(images, self._facts(digests), strict=True))
        return pa.Table.from_batches(list(gallery_batches(rows)), GALLERY_SCHEMA)

    def _read_labels(self, path: Path) -> None:
        names: dict[str, int] = {}
        done = 0
        for batch in read_gallery(path, ["label"]):
            encoded = batch.column("label").dictionary_encode()
            numbers = [names.setdefault(name, len(names)) for name in encoded.dictionary.to_pylist()]
            codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            self.label_codes[done : done + len(codes)] = np.array([*numbers, -1], np.int32)[codes]
            done += len(codes)
        self.labels = sorted(names)
        place = np.empty(len(names) + 1, np.int32)
        place[[names[name] for name in self.labels]] = np.arange(len(names), dtype=np.int32)
        place[-1] = -1
        for start in range(0, self._count, 65_536):
            part = slice(start, start + 65_536)
            self.label_codes[part] = place[self.label_codes[part]]


class _LiveTable:
    """The table of a version, of which rows are taken in rising order."""

    def __init__(self, version: IndexVersion | None) -> None:
        self._coming = iter(()) if version is None else version.table()
        self._held: list[Any] = []
        self._first = self._stop = 0

    def take(self, rows: NDArray[np.int64]) -> Any:
        """The rows with these numbers, all higher than those taken before."""
        while self._stop <= rows[-1]:
            batch = next(self._coming)
            self._held.append(batch)
            self._stop += batch.num_rows
        while self._first + self._held[0].num_rows <= rows[0]:
            self._first += self._held.pop(0).num_rows
        table = pa.Table.from_batches(self._held).combine_chunks()
        if len(rows) == rows[-1] - rows[0] + 1:
            return table.slice(int(rows[0]) - self._first, len(rows))
        return table.take(pa.array(rows - self._first))


def _row(image: SourceImage, facts: ImageFacts) -> GalleryImage:
    return GalleryImage(
        image.id, image.uri, image.label, facts.width, facts.height, facts.sha256.hex(), facts.phash, facts.crop,
        image.stamp, dict(image.metadata),
    )  # fmt: skip
