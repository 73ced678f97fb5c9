"""Exact search of one member's vectors: the product with all rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cbir.core.vector_index.segmented_vectors import HalfVectors

__all__ = ["ExactIndex", "build", "check", "load"]


class ExactIndex:
    """All vectors as one torch matrix, in float16 on a GPU and float32 on a CPU."""

    def __init__(self, vectors: HalfVectors, device: str) -> None:
        dtype = torch.float16 if device == "cuda" else torch.float32
        self._matrix = torch.from_numpy(np.array(vectors)).to(device, dtype)

    def search(self, queries: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See :class:`cbir.core.vector_index.VectorIndex`."""
        with torch.inference_mode():
            query = torch.from_numpy(np.ascontiguousarray(queries)).to(self._matrix)
            scores, rows = torch.topk(query @ self._matrix.T, min(count, len(self._matrix)), dim=1)
        return rows.cpu().numpy(), scores.float().cpu().numpy()


def check(argument: str) -> None:
    """There is nothing to choose."""


def build(vectors: HalfVectors, argument: str, path: Path) -> None:
    """Do nothing: the embeddings are the index."""


def load(path: Path, vectors: HalfVectors, device: str) -> ExactIndex:
    """See :func:`cbir.core.vector_index.load_index`."""
    return ExactIndex(vectors, device)
