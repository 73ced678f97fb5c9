"""A gallery of drawn vectors, of any size, that is never in memory: a block is drawn anew whenever it is asked for.

Every image has a place in a space of few dimensions, near one of many centres; each member sees it through a map of its
own, with noise of its own.  So members agree as models do that look at the same pictures, and some images are nearer
than others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cbir.core.artifacts import GALLERY_SCHEMA, IndexVersion, write_gallery
from cbir.core.ensemble import EnsembleSpec, load_ensemble
from cbir.core.images import Crop
from cbir.core.metric import normalise

__all__ = ["DrawnGallery", "DrawnVectors", "drawn_ensemble", "drawn_queries"]

Floats = NDArray[np.float32]

BLOCK = 8192
#: Dimensions of the common space, images to a centre, and lengths of spread and noise relative to the centres.
LATENT, CROWD, SPREAD, NOISE = 32, 200, 0.5, 0.3
#: Numbers of blocks that no gallery reaches: queries are drawn from there.
_QUERY_BLOCK = 2**31


def drawn_ensemble(members: int, dim: int, index: str = "exact") -> EnsembleSpec:
    """So many members with vectors of ``dim`` components; the network that they name is never loaded."""
    from dataclasses import replace

    network = load_ensemble("compact").members[0]
    made = (replace(network, name=f"m{m}", dim=dim, metric="cosine", index=index) for m in range(members))
    return EnsembleSpec("drawn", tuple(made), Crop.NONE)


class DrawnVectors:
    """(N, dim) unit vectors of one member."""

    def __init__(self, member: int, count: int, dim: int, seed: int) -> None:
        self.shape = (count, dim)
        self._member, self._seed = member, seed
        rng = np.random.default_rng([seed, 1, member])
        decay = np.exp(-2 * np.arange(dim) / dim).astype(np.float32)
        self._map = rng.standard_normal((LATENT, dim), np.float32) * decay / np.sqrt(np.float32(LATENT))
        self._decay = decay
        self._block = lru_cache(maxsize=2)(self._drawn)

    def __len__(self) -> int:
        return self.shape[0]

    def _drawn(self, block: int) -> Floats:
        rng = np.random.default_rng([self._seed, 2, self._member, block])
        noise = rng.standard_normal((BLOCK, self.shape[1]), np.float32) * self._decay
        return normalise(_places(self._seed, block, self.shape[0]) @ self._map + np.float32(NOISE) * noise)

    def __getitem__(self, rows: Any) -> Floats:
        wanted = np.arange(self.shape[0])[rows]
        result = np.empty((len(wanted), self.shape[1]), np.float32)
        for block in np.unique(wanted // BLOCK).tolist():
            here = wanted // BLOCK == block
            result[here] = self._block(block)[wanted[here] % BLOCK]
        return result

    def queries(self, count: int) -> Floats:
        """(count, dim) vectors of images that are not in the gallery, at most a block of them."""
        return self._block(_QUERY_BLOCK)[:count]


@lru_cache(maxsize=2)
def _centres(seed: int, count: int) -> Floats:
    return np.random.default_rng([seed, 3]).standard_normal((max(1, count // CROWD), LATENT), np.float32)


@lru_cache(maxsize=2)
def _places(seed: int, block: int, count: int) -> Floats:
    rng = np.random.default_rng([seed, 4, block])
    centres = _centres(seed, count)
    return centres[rng.integers(0, len(centres), BLOCK)] + np.float32(SPREAD) * rng.standard_normal(
        (BLOCK, LATENT), np.float32
    )


def drawn_queries(members: int, count: int, dim: int, seed: int, queries: int) -> Floats:
    """(queries, members * dim) the members' vectors of queries side by side."""
    return np.hstack([DrawnVectors(m, count, dim, seed).queries(queries) for m in range(members)])


class DrawnGallery:
    """The table of a gallery of drawn images, which have no files; without labels.

    Args:
        live: A version whose rows are copied, as the indexer copies those of images that have not changed.
        rows: (N,) the row that an image has there, -1 for others.

    Attributes:
        numbers: (N,) numbers of the images, which are their names: rising, and some may be missing.
    """

    labels: list[str] = []  # noqa: RUF012 - there are none

    def __init__(
        self, numbers: NDArray[np.int64], live: IndexVersion | None = None, rows: NDArray[np.int64] | None = None
    ) -> None:
        self.numbers, self._live, self._rows = numbers, live, rows
        self.label_codes = np.full(len(numbers), -1, np.int32)

    def __len__(self) -> int:
        return len(self.numbers)

    def write(self, path: Path, stays: NDArray[np.bool_] | None = None) -> None:
        """Write ``images.parquet``; of the rows that the live version has, only where it does not say ``stays``."""
        new = self._rows is None or self._rows < 0
        if stays is not None and self._rows is not None:
            new = new | ~stays[np.maximum(self._rows, 0)]
        drawn = self._drawn(np.flatnonzero(np.broadcast_to(new, len(self))))
        write_gallery(path, drawn if stays is not None else itertools.chain(self._kept(), drawn))

    def _kept(self) -> Iterator[Any]:
        """The live version's rows, which all come before the new ones."""
        if self._live is None or self._rows is None:
            return
        kept, done = self._rows[self._rows >= 0], 0
        for batch in self._live.table():
            here = kept[(kept >= done) & (kept < done + batch.num_rows)] - done
            done += batch.num_rows
            yield batch.take(pa.array(here))

    def _drawn(self, new: NDArray[np.int64]) -> Iterator[Any]:
        for start in range(0, len(new), BLOCK):
            yield self._rows_at(new[start : start + BLOCK])

    def _rows_at(self, places: NDArray[np.int64]) -> Any:
        numbers, count = self.numbers[places], len(places)
        names = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 12, "0")
        digests = np.empty((count, 32), np.uint8)
        for block in np.unique(numbers // BLOCK).tolist():
            here = numbers // BLOCK == block
            drawn = np.random.default_rng([6, block]).integers(0, 256, (BLOCK, 32), np.uint8)
            digests[here] = drawn[numbers[here] % BLOCK]
        box = np.tile(np.array([0, 0, 640, 480], np.int32), count)
        columns = {
            "id": names,
            "uri": pc.binary_join_element_wise("nowhere/", names, ".jpg", ""),
            "label": pa.nulls(count, pa.string()),
            "width": pa.array(np.full(count, 640, np.int32)),
            "height": pa.array(np.full(count, 480, np.int32)),
            "sha256": pa.array([digest.tobytes().hex() for digest in digests], pa.string()),
            "phash": pa.array(digests[:, :8].copy().view(np.uint64).ravel()),
            "crop": pa.FixedSizeListArray.from_arrays(pa.array(box), 4),
            "stamp": pa.array([""] * count, pa.string()),
            "metadata": pa.array([[]] * count, GALLERY_SCHEMA.field("metadata").type),
        }
        return pa.record_batch(columns, schema=GALLERY_SCHEMA)
