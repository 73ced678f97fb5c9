"""The gallery's vectors on a device: the product with all rows, exact cosines of some, and the rows themselves.

A row is the members' unit vectors side by side.  N rows, B queries, C candidates a query, M members, D components.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cbir.core.search.cpu_matrix import HostMatrix, MappedMatrix
from cbir.core.search.gpu_matrix import DeviceMatrix

__all__ = ["FLOAT32_BYTES", "GalleryMatrix", "load_matrix"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Galleries up to this many bytes are widened to float32 on a CPU.
FLOAT32_BYTES = 256 * 2**20


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
        """(B, M, C) cosines in float32 of (B, C) rows, each query with its own; rows below 0 get any number."""
        ...

    def vectors_of(self, rows: Rows) -> Floats:
        """(K, D) float32: the vectors of (K,) rows."""
        ...


def load_matrix(
    embeddings: Sequence[NDArray[np.float16]], device: str, float32_bytes: int = FLOAT32_BYTES
) -> GalleryMatrix:
    """Put the members' (N, d) vectors where they are searched: ``cpu`` or a device of torch."""
    stops = tuple(itertools.accumulate((int(part.shape[1]) for part in embeddings), initial=0))
    if device != "cpu":
        return DeviceMatrix(embeddings, stops, device)
    if len(embeddings[0]) * stops[-1] * 4 <= float32_bytes:
        return HostMatrix(embeddings, stops)
    return MappedMatrix(embeddings, stops)
