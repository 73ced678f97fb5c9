"""The gallery's vectors on a device: the product with all rows, exact cosines of some, and the rows themselves.

A row is the members' unit vectors side by side.  N rows, B queries, C candidates a query, M members, D components.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["DeviceMatrix", "GalleryMatrix", "HostMatrix", "load_matrix"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Galleries up to this many bytes are widened to float32 on a CPU.  Larger ones stay the float16 that they are on disk,
#: memory-mapped, so that processes share them, and are widened row by row or block by block.
FLOAT32_BYTES = 256 * 2**20
_BLOCK_ROWS = 65536
#: Candidates that are widened at once: their vectors stay in the cache.
_CHUNK = 512
#: Scores and gathered components that a GPU holds at once.
_DEVICE_NUMBERS = 2**28


class GalleryMatrix(Protocol):
    """The vectors of a gallery."""

    #: Where each member's part begins, and D: M + 1 numbers.
    stops: tuple[int, ...]

    def __len__(self) -> int: ...

    def best(
        self, queries: Floats, count: int, allowed: NDArray[np.bool_] | None = None, member: int | None = None
    ) -> tuple[Rows, Floats]:
        """The rows of the largest inner products, best first, by a product with all of them.

        On a GPU the products are of half precision.

        Args:
            queries: (B, D); with ``member`` (B, its components), which are compared with that member's part alone.
            count: At most N.
            allowed: (N,) rows that count, or None for all.

        Returns:
            (B, count) rows and products; -inf for rows that do not count.
        """
        ...

    def similarities(self, rows: Rows, queries: Floats) -> Floats:
        """(B, M, C) cosines in float32 of (B, C) rows, each query with its own; rows below 0 get any value."""
        ...

    def stored(self, rows: Rows) -> Floats:
        """(K, D) float32: the vectors of (K,) rows."""
        ...


def load_matrix(embeddings: Sequence[NDArray[np.float16]], device: str) -> GalleryMatrix:
    """Put the members' (N, d) vectors where they are searched: ``cpu`` or a device of torch."""
    return HostMatrix(embeddings) if device == "cpu" else DeviceMatrix(embeddings, device)


def _stops(embeddings: Sequence[NDArray[np.float16]]) -> tuple[int, ...]:
    return tuple(itertools.accumulate((int(part.shape[1]) for part in embeddings), initial=0))


class HostMatrix:
    """In the memory of a CPU, member by member, as the files are."""

    def __init__(self, embeddings: Sequence[NDArray[np.float16]], float32_bytes: int = FLOAT32_BYTES) -> None:
        self.stops = _stops(embeddings)
        self._count = len(embeddings[0])
        self.widened = self._count * self.stops[-1] * 4 <= float32_bytes
        kind = np.float32 if self.widened else np.float16
        self._arrays = [np.ascontiguousarray(part, kind) for part in embeddings]
        self._maps = [] if self.widened else [m for part in embeddings if (m := getattr(part, "_mmap", None))]
        with warnings.catch_warnings():
            # The files are mapped for reading only, and nothing is written here.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self._parts = [torch.from_numpy(array) for array in self._arrays]

    def __len__(self) -> int:
        return self._count

    def _split(self, queries: Floats) -> list[Floats]:
        return [np.ascontiguousarray(queries[:, a:b]) for a, b in itertools.pairwise(self.stops)]

    def best(
        self, queries: Floats, count: int, allowed: NDArray[np.bool_] | None = None, member: int | None = None
    ) -> tuple[Rows, Floats]:
        """See :class:`GalleryMatrix`."""
        parts, asked = self._parts, [torch.from_numpy(part) for part in self._split(queries)] if member is None else []
        if member is not None:
            parts, asked = [self._parts[member]], [torch.from_numpy(np.ascontiguousarray(queries))]
        rows, products = [], []
        with torch.inference_mode():
            for start in range(0, self._count, _BLOCK_ROWS):
                stop = min(start + _BLOCK_ROWS, self._count)
                scores = torch.zeros((len(queries), stop - start))
                for query, part in zip(asked, parts, strict=True):
                    scores.addmm_(query, part[start:stop].float().T)
                if allowed is not None:
                    scores.masked_fill_(torch.from_numpy(~allowed[start:stop]), -torch.inf)
                found = torch.topk(scores, min(count, stop - start))
                rows.append(found.indices + start)
                products.append(found.values)
            return _best_of(torch.cat(rows, dim=1), torch.cat(products, dim=1), count)

    def similarities(self, rows: Rows, queries: Floats) -> Floats:
        """See :class:`GalleryMatrix`."""
        asked = self._split(queries)
        result = np.empty((len(asked), *rows.shape), np.float32)
        if self.widened:
            import faiss

            # Rows are read where they lie, which is several times faster than to gather and multiply them.
            wanted = np.ascontiguousarray(np.maximum(rows, 0), np.int64)
            for query, part, out in zip(asked, self._arrays, result, strict=True):
                faiss.fvec_inner_products_by_idx(
                    faiss.swig_ptr(out), faiss.swig_ptr(query), faiss.swig_ptr(part), faiss.swig_ptr(wanted),
                    part.shape[1], *rows.shape,
                )  # fmt: skip
        else:
            places = torch.from_numpy(np.maximum(rows, 0))
            with torch.inference_mode():
                for start in range(0, rows.shape[1], _CHUNK):
                    chunk = slice(start, start + _CHUNK)
                    for i, picked in enumerate(places[:, chunk]):
                        for vectors, half, out in zip(asked, self._parts, result, strict=True):
                            out[i, chunk] = (half[picked].float() @ torch.from_numpy(vectors[i])).numpy()
        return result.transpose(1, 0, 2)

    def stored(self, rows: Rows) -> Floats:
        """See :class:`GalleryMatrix`."""
        return np.concatenate([array[rows].astype(np.float32) for array in self._arrays], axis=1)

    def sample(self, rows: slice) -> Floats:
        """(K, D) float32: the vectors of a slice of the rows."""
        return np.concatenate([part[rows].float().numpy() for part in self._parts], axis=1)

    def release(self) -> None:
        """Let go of the pages of mapped files that were read; they stay in the system's cache while there is room.

        What was freed meanwhile goes back to the system too: glibc keeps hundreds of megabytes of it otherwise.
        """
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)
        if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
            trim(0)


class DeviceMatrix:
    """In half precision on a GPU, side by side: one product gives the fused score of every row."""

    def __init__(self, embeddings: Sequence[NDArray[np.float16]], device: str) -> None:
        self.stops = _stops(embeddings)
        count = len(embeddings[0])
        self._matrix = torch.empty((count, self.stops[-1]), dtype=torch.float16, device=device)
        for part, (start, stop) in zip(embeddings, itertools.pairwise(self.stops), strict=True):
            for row in range(0, count, _BLOCK_ROWS):
                self._matrix[row : row + _BLOCK_ROWS, start:stop].copy_(
                    torch.from_numpy(np.array(part[row : row + _BLOCK_ROWS]))
                )

    def __len__(self) -> int:
        return len(self._matrix)

    def _there(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._matrix.device)

    def best(
        self, queries: Floats, count: int, allowed: NDArray[np.bool_] | None = None, member: int | None = None
    ) -> tuple[Rows, Floats]:
        """See :class:`GalleryMatrix`."""
        start, stop = (0, self.stops[-1]) if member is None else self.stops[member : member + 2]
        part = self._matrix[:, start:stop]
        block = max(count, _DEVICE_NUMBERS // max(1, len(queries)))
        rows, products = [], []
        with torch.inference_mode():
            asked = self._there(queries).half()
            blocked = None if allowed is None else self._there(~allowed)
            for first in range(0, len(part), block):
                scores = asked @ part[first : first + block].T
                if blocked is not None:
                    scores.masked_fill_(blocked[first : first + block], -torch.inf)
                found = torch.topk(scores, min(count, scores.shape[1]))
                rows.append(found.indices + first)
                products.append(found.values.float())
            return _best_of(torch.cat(rows, dim=1), torch.cat(products, dim=1), count)

    def similarities(self, rows: Rows, queries: Floats) -> Floats:
        """See :class:`GalleryMatrix`."""
        parts = []
        with torch.inference_mode():
            wanted, asked = self._there(np.maximum(rows, 0)), self._there(queries)
            step = max(1, _DEVICE_NUMBERS // max(1, rows.shape[0] * self.stops[-1]))
            for chunk in torch.split(wanted, step, dim=1):
                products = self._matrix[chunk].float() * asked[:, None]
                parts.append(torch.stack([products[..., a:b].sum(-1) for a, b in itertools.pairwise(self.stops)], 1))
            result: Floats = torch.cat(parts, dim=2).cpu().numpy()
        return result

    def stored(self, rows: Rows) -> Floats:
        """See :class:`GalleryMatrix`."""
        picked: Floats = self._matrix[self._there(rows)].float().cpu().numpy()
        return picked


def _best_of(rows: torch.Tensor, products: torch.Tensor, count: int) -> tuple[Rows, Floats]:
    """The best of all blocks' best, on the host."""
    if rows.shape[1] > count:
        found = torch.topk(products, count)
        rows, products = rows.gather(1, found.indices), found.values
    return rows.cpu().numpy(), products.cpu().numpy()
