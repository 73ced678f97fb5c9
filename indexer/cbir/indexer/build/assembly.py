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

    def write(self, path: Path, stays: NDArray[np.bool_] | None = None) -> None:
        """Write ``images.parquet``.

        Args:
            stays: (L,) rows of the live version that are not written, though they belong to the gallery.
        """
        write_gallery(path, self._batches(stays))
        written = (batch.column("label") for batch in read_gallery(path, ["label"]))
        self._read_labels(written if stays is None else self._labels(written, stays))

    def _labels(self, written: Iterator[Any], stays: NDArray[np.bool_]) -> Iterator[Any]:
        """The labels of all rows: of those that stay from the live version, of others as they were written."""
        assert self._live is not None
        live, new = self._live.table_reader(["label"]), pa.nulls(0, pa.string())
        for start in range(0, self._count, _PIECE):
            rows = self.live_rows[start : start + _PIECE]
            there = (rows >= 0) & stays[np.maximum(rows, 0)]
            while len(new) < len(rows) and (more := next(written, None)) is not None:
                new = pa.concat_arrays([new, more])
            count = len(rows) - int(there.sum())
            parts = [new.slice(0, count)]
            if there.any():
                parts.append(live.take(rows[there]).column("label").combine_chunks())
            new = new.slice(count)
            # Written ones stand before those that stay: each goes to its place.
            yield pa.concat_arrays(parts).take(pa.array(_places(~there)))

    def _batches(self, stays: NDArray[np.bool_] | None) -> Iterator[Any]:
        live, done = None if self._live is None else self._live.table_reader(), 0
        for start in range(0, self._plan.count, _PIECE):
            stop = min(start + _PIECE, self._plan.count)
            rows, digests = self._plan.rows[start:stop], self._plan.digests[start:stop]
            there = np.flatnonzero(rows != LEFT_OUT)
            if not len(there):
                continue
            kept = rows[there] >= 0 if self._live is not None else np.zeros(len(there), np.bool_)
            here = slice(done, done + len(there))
            self.digests[here] = digests[there]
            self.live_rows[here] = np.where(kept, rows[there], -1)
            done += len(there)
            if stays is not None:
                # What does not stay is written as if it were new.
                there = there[~(kept & stays[np.maximum(rows[there], 0)])]
                kept = np.zeros(len(there), np.bool_)
                if not len(there):
                    continue
            parts = [live.take(rows[there[kept]])] if live is not None and kept.any() else []
            if not kept.all():
                new = there[~kept]
                parts.append(self._new(start, stop, {*new.tolist()}, digests[new]))
            batch = pa.concat_tables(parts).combine_chunks()
            # Kept rows stand before new ones: each goes to its place.
            yield from batch.take(pa.array(_places(kept))).combine_chunks().to_batches()

    def _new(self, start: int, stop: int, wanted: set[int], digests: NDArray[np.uint8]) -> Any:
        images = [image for place, image in self._plan.between(start, stop) if place - start in wanted]
        rows = (_row(image, facts) for image, facts in zip(images, self._facts(digests), strict=True))
        return pa.Table.from_batches(list(gallery_batches(rows)), GALLERY_SCHEMA)

    def _read_labels(self, labels: Iterator[Any]) -> None:
        names: dict[str, int] = {}
        done = 0
        for column in labels:
            encoded = column.dictionary_encode()
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


def _places(first: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n,) where each row is once those that are marked stand before the others."""
    places = np.empty(len(first), np.int64)
    places[np.argsort(~first, kind="stable")] = np.arange(len(first))
    return places


def _row(image: SourceImage, facts: ImageFacts) -> GalleryImage:
    return GalleryImage(
        image.id, image.uri, image.label, facts.width, facts.height, facts.sha256.hex(), facts.phash, facts.crop,
        image.stamp, dict(image.metadata),
    )  # fmt: skip
