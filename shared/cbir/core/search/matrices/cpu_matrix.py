"""The gallery's vectors in main memory, or mapped from files, for search on a CPU.

Both classes implement :class:`cbir.core.search.matrices.gallery_matrix.GalleryMatrix`, which documents their methods.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
import warnings
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from cbir.core.machine import jit, row_ranges, shared_out
from cbir.core.search.matrices.blockwise_top_k import best_of, best_rows
from cbir.core.search.matrices.half_products import add_product, inner_products_of, products
from cbir.core.vector_index import HalfVectors, SegmentedVectors

__all__ = ["CpuMatrix", "HalfRows", "HostMatrix", "MappedMatrix", "inner_products", "stored_as"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Rows whose products are kept at a time.
_BLOCK_ROWS = 2**18
_GATHERED_ROWS = 2**15
_GATHERED = "float16, gathered"
#: Rows below which further threads cost more than they bring.
_ROWS_A_THREAD = 8192
#: Candidates that are converted to float32 at a time, so that their vectors stay in the processor's cache.
_CHUNK = 512


def stored_as(embeddings: Sequence[HalfVectors]) -> str:
    """How float16 rows are stored: what takes other times to search has another name."""
    return _GATHERED if any(isinstance(part, SegmentedVectors) for part in embeddings) else "float16"


class HostMatrix:
    """The vectors as one float32 array in memory, the members side by side."""

    #: See :func:`stored_as`.
    stored = "float32"

    def __init__(self, embeddings: Sequence[NDArray[np.floating] | SegmentedVectors], stops: tuple[int, ...]) -> None:
        self.stops = stops
        first = embeddings[0]
        if len(embeddings) == 1 and not isinstance(first, SegmentedVectors) and first.dtype == np.float32:
            self._rows = cast("Floats", first)
        else:
            self._rows = np.concatenate([np.asarray(part) for part in embeddings], axis=1, dtype=np.float32)
        self._matrix = torch.from_numpy(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def first(self, count: int) -> HostMatrix:
        """The first ``count`` rows, in the same memory."""
        return HostMatrix([self._rows[:count]], self.stops)

    def best(
        self, queries: Floats, count: int, allowed: NDArray[np.bool_] | None = None, member: int | None = None
    ) -> tuple[Rows, Floats]:
        """See :class:`cbir.core.search.matrices.gallery_matrix.GalleryMatrix`."""
        part = self._matrix if member is None else self._matrix[:, slice(*self.stops[member : member + 2])]
        asked = torch.from_numpy(np.ascontiguousarray(queries))
        with torch.inference_mode():
            return best_of([best_rows(asked @ part.T, count, allowed)], count)

    def similarities(self, rows: Rows, queries: Floats) -> Floats:
        """See :class:`cbir.core.search.matrices.gallery_matrix.GalleryMatrix`."""
        return inner_products(self._rows, rows, queries, self.stops)

    def vectors_of(self, rows: Rows) -> Floats:
        """See :class:`cbir.core.search.matrices.gallery_matrix.GalleryMatrix`."""
        return np.take(self._rows, rows, axis=0)

    def sample(self, rows: slice) -> Floats:
        """(K, D) float32: the vectors of a slice of the rows."""
        return self._rows[rows]

    def release(self) -> None:
        """Return freed memory to the system; the rows themselves stay in memory."""
        _trim()


class HalfRows:
    """Rows that are gathered from the segments of a version, as tensors."""

    def __init__(self, vectors: SegmentedVectors) -> None:
        self._vectors = vectors

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        picked = self._vectors[rows if isinstance(rows, slice) else rows.numpy()]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(picked)


class MappedMatrix:
    """The vectors as one float16 array a member, mapped from the files, so that processes share the memory.

    They are converted to float32 when they are needed, row by row or block by block.
    """

    #: How one query is multiplied with all rows: by tiles that are converted as for a batch, or row by row.
    one_by_tiles = False

    def __init__(self, embeddings: Sequence[HalfVectors], stops: tuple[int, ...]) -> None:
        self.stops = stops
        self._arrays = [
            part if isinstance(part, SegmentedVectors) else np.ascontiguousarray(part, np.float16)
            for part in embeddings
        ]
        self._maps = [m for part in embeddings if (m := getattr(part, "_mmap", None))]
        self._maps += [m for part in embeddings if isinstance(part, SegmentedVectors) for m in part.maps]
        self.stored = stored_as(embeddings)
        # What is gathered is copied: so much that it stays in the processor's cache.
        self._block_rows = _GATHERED_ROWS if self.stored == _GATHERED else _BLOCK_ROWS
        with warnings.catch_warnings():
            # The files are mapped read-only, which torch warns of; nothing is written here.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self.parts = [
                HalfRows(array) if isinstance(array, SegmentedVectors) else torch.from_numpy(array)
                for array in self._arrays
            ]

    def __len__(self) -> int:
        return len(self._arrays[0])

    def first(self, count: int) -> MappedMatrix:
        """The first ``count`` rows, in the same memory."""
        first = (a.first(count) if isinstance(a, SegmentedVectors) else a[:count] for a in self._arrays)
        return MappedMatrix([*first], self.stops)

    def _split(self, queries: Floats) -> list[torch.Tensor]:
        return [torch.from_numpy(np.ascontiguousarray(queries[:, a:b])) for a, b in itertools.pairwise(self.stops)]

    def best(
        self, queries: Floats, count: int, allowed: NDArray[np.bool_] | None = None, member: int | None = None
    ) -> tuple[Rows, Floats]:
        """See :class:`cbir.core.search.matrices.gallery_matrix.GalleryMatrix`."""
        members = slice(None) if member is None else slice(member, member + 1)
        single = self._split(queries) if member is None else [torch.from_numpy(np.ascontiguousarray(queries))]

        def best_within(low: int, high: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
            found = []
            with torch.inference_mode():
                for start in range(low, high, self._block_rows):
                    block = slice(start, min(start + self._block_rows, high))
                    if len(queries) == 1 and not self.one_by_tiles:
                        scores = torch.zeros((1, block.stop - start))
                        for query, part in zip(single, self._arrays[members], strict=True):
                            add_product(part[block], query[0].numpy(), scores[0].numpy())
                    else:
                        parts = [part[block] for part in self.parts[members]]
                        scores = products(parts, torch.from_numpy(np.ascontiguousarray(queries)))
                    found.append(best_rows(scores, count, allowed, start))
            return found

        found = shared_out(best_within, row_ranges(len(self), _ROWS_A_THREAD))
        with torch.inference_mode():
            return best_of([block for part in found for block in part], count)

    def similarities(self, rows: Rows, queries: Floats) -> Floats:
        """See :class:`cbir.core.search.matrices.gallery_matrix.GalleryMatrix`."""
        asked = self._split(queries)
        result = np.zeros((len(asked), *rows.shape), np.float32)
        places = np.ascontiguousarray(rows)
        for vectors, array, out in zip(asked, self._arrays, result, strict=True):
            mine = vectors.numpy()
            if isinstance(array, SegmentedVectors):
                for i, own in enumerate(np.maximum(places, 0)):
                    for start in range(0, len(own), _CHUNK):
                        gathered = array[own[start : start + _CHUNK]]
                        add_product(gathered, mine[i], out[i, start : start + _CHUNK])
            else:
                inner_products_of(array, places, mine, out)
        return np.ascontiguousarray(result.transpose(1, 0, 2))

    def vectors_of(self, rows: Rows) -> Floats:
        """See :class:`cbir.core.search.matrices.gallery_matrix.GalleryMatrix`."""
        return np.concatenate([array[rows].astype(np.float32) for array in self._arrays], axis=1)

    def sample(self, rows: slice) -> Floats:
        """(K, D) float32: the vectors of a slice of the rows."""
        return np.concatenate([part[rows].float().numpy() for part in self.parts], axis=1)

    def release(self) -> None:
        """Unload the pages of the mapped files that were read; the system may still keep them in its cache."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)
        _trim()


CpuMatrix = HostMatrix | MappedMatrix


def _trim() -> None:
    """Return freed memory to the system, as glibc would keep hundreds of megabytes of it."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def inner_products(matrix: Floats, rows: Rows, queries: Floats, stops: Sequence[int]) -> Floats:
    """(B, M, C) cosines of (B, D) queries with their own (B, C) rows of a matrix; those of rows of -1 mean nothing."""
    result = np.empty((len(rows), len(stops) - 1, rows.shape[1]), np.float32)
    _inner_products(matrix, np.ascontiguousarray(rows), np.ascontiguousarray(queries), np.array(stops), result)
    return result


@jit
def _inner_products(matrix: Floats, rows: Rows, queries: Floats, stops: NDArray[np.int64], result: Floats) -> None:
    """Write each member's inner products of (B, C) rows with (B, D) queries into the (B, M, C) result.

    Rows are read in place, which is several times as fast as gathering them first, and four at a time, because a loop
    over one row mostly waits for memory.  Where C is no multiple of four, the last row is computed more than once
    rather than by a loop of its own: that could sum in another order and round differently, and equal images must get
    equal scores.
    """
    last = rows.shape[1] - 1
    for b in range(rows.shape[0]):
        for m in range(len(stops) - 1):
            low, high = stops[m], stops[m + 1]
            query = queries[b, low:high]
            for c in range(0, last + 1, 4):
                c1, c2, c3 = min(c + 1, last), min(c + 2, last), min(c + 3, last)
                first = matrix[max(rows[b, c], 0), low:high]
                second = matrix[max(rows[b, c1], 0), low:high]
                third = matrix[max(rows[b, c2], 0), low:high]
                fourth = matrix[max(rows[b, c3], 0), low:high]
                one = two = three = four = np.float32(0)
                for d in range(high - low):
                    value = query[d]
                    one += first[d] * value
                    two += second[d] * value
                    three += third[d] * value
                    four += fourth[d] * value
                result[b, m, c], result[b, m, c1], result[b, m, c2], result[b, m, c3] = one, two, three, four
