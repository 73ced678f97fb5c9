"""The gallery's vectors on the device that searches them: products with all rows, exact cosines of some rows.

A row is the M members' projected unit vectors side by side, D components in all.  Where each member's part of a query
is multiplied by its weight, one inner product with a row gives the fused score for any weights.

N rows, B queries, C candidates a query.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cbir.core.search.matrices.cpu_matrix import HostMatrix, MappedMatrix
from cbir.core.search.matrices.gpu_matrix import DeviceMatrix
from cbir.core.vector_index import HalfVectors

__all__ = ["FLOAT32_BYTES", "GalleryMatrix", "keeps_float32", "load_matrix"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: On a CPU, galleries whose float32 copy takes at most this many bytes are converted when they are loaded.
FLOAT32_BYTES = 256 * 2**20


class GalleryMatrix(Protocol):
    """The vectors of a gallery."""

    #: M + 1 numbers: the column where each member's part begins, then D.
    stops: tuple[int, ...]

    def __len__(self) -> int: ...

    def best(
        self, queries: Floats, count: int, allowed: NDArray[np.bool_] | None = None, member: int | None = None
    ) -> tuple[Rows, Floats]:
        """The rows with the largest inner products, best first, from the product with all rows.

        On a GPU the products have half precision.

        Args:
            queries: (B, D); with ``member``, (B, d) for that member's part of the rows alone.
            count: Rows to list, at most N.
            allowed: (N,) rows that may be listed, or None for all.

        Returns:
            (B, count) rows and products; rows that are not allowed have -inf.
        """
        ...

    def similarities(self, rows: Rows, queries: Floats) -> Floats:
        """(B, M, C) float32 cosines of each query with its own (B, C) rows; the values for rows of -1 mean nothing."""
        ...

    def vectors_of(self, rows: Rows) -> Floats:
        """(K, D) float32: the vectors of (K,) rows."""
        ...


def keeps_float32(count: int, width: int, float32_bytes: int = FLOAT32_BYTES) -> bool:
    """Whether ``count`` rows of ``width`` components are kept in float32 on a CPU."""
    return count * width * 4 <= float32_bytes


def load_matrix(embeddings: Sequence[HalfVectors], device: str, float32_bytes: int = FLOAT32_BYTES) -> GalleryMatrix:
    """Load the members' (N, d) vectors onto ``cpu`` or a torch device; ``float32_bytes`` as ``FLOAT32_BYTES``."""
    stops = tuple(itertools.accumulate((int(part.shape[1]) for part in embeddings), initial=0))
    if device != "cpu":
        return DeviceMatrix(embeddings, stops, device)
    if keeps_float32(len(embeddings[0]), stops[-1], float32_bytes):
        return HostMatrix(embeddings, stops)
    return MappedMatrix(embeddings, stops)
