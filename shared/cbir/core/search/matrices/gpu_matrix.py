"""The gallery's vectors in the memory of a GPU.

The class implements :class:`cbir.core.search.matrices.gallery_matrix.GalleryMatrix`, which documents its methods.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cbir.core.search.matrices.blockwise_top_k import best_of, best_rows
from cbir.core.vector_index import HalfVectors

__all__ = ["DeviceMatrix"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

_BLOCK_ROWS = 65536
#: Most scores, and most components of gathered rows, that are in the GPU's memory at a time.
_DEVICE_NUMBERS = 2**28


class DeviceMatrix:
    """The vectors as one float16 array, the members side by side."""

    def __init__(self, embeddings: Sequence[HalfVectors], stops: tuple[int, ...], device: str) -> None:
        self.stops = stops
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
        """See :class:`cbir.core.search.matrices.gallery_matrix.GalleryMatrix`."""
        part = self._matrix if member is None else self._matrix[:, slice(*self.stops[member : member + 2])]
        block = max(count, _DEVICE_NUMBERS // max(1, len(queries)))
        with torch.inference_mode():
            asked = self._there(queries).half()
            starts = range(0, len(part), block)
            return best_of(
                [best_rows(asked @ part[start : start + block].T, count, allowed, start) for start in starts], count
            )

    def similarities(self, rows: Rows, queries: Floats) -> Floats:
        """See :class:`cbir.core.search.matrices.gallery_matrix.GalleryMatrix`."""
        parts = []
        with torch.inference_mode():
            wanted, asked = self._there(np.maximum(rows, 0)), self._there(queries)
            step = max(1, _DEVICE_NUMBERS // max(1, rows.shape[0] * self.stops[-1]))
            for chunk in torch.split(wanted, step, dim=1):
                products = self._matrix[chunk].float() * asked[:, None]
                parts.append(torch.stack([products[..., a:b].sum(-1) for a, b in itertools.pairwise(self.stops)], 1))
            result: Floats = torch.cat(parts, dim=2).cpu().numpy()
        return result

    def vectors_of(self, rows: Rows) -> Floats:
        """See :class:`cbir.core.search.matrices.gallery_matrix.GalleryMatrix`."""
        picked: Floats = self._matrix[self._there(rows)].float().cpu().numpy()
        return picked
