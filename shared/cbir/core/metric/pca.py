"""Principal component analysis (PCA) of a gallery's embeddings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbir.core.metric.vectors import Vectors

__all__ = ["fit_pca", "scatter_matrix"]

Floats = NDArray[np.float32]

#: Rows that are in memory at a time.
_BLOCK = 16_384


def fit_pca(x: Vectors, dim: int, *, centred: bool = True) -> tuple[Floats, Floats]:
    """Principal components of the rows of (N, D).

    Args:
        dim: Components to keep; at most min(N, D) are kept.
        centred: Whether to subtract the mean; without, inner products are preserved best.

    Returns:
        The mean (D,), zeros where not centred; and the basis (D, kept), its columns by falling variance.
    """
    mean = _mean(x) if centred else np.zeros(x.shape[1])
    scatter = scatter_matrix(x, mean)
    _, vectors = np.linalg.eigh(scatter)
    kept = min(dim, *x.shape)
    basis = vectors[:, ::-1][:, :kept]
    # The sign of an eigenvector is arbitrary; it is fixed here so that the same gallery gives the same basis.
    signs = np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(kept)])
    return mean.astype(np.float32), (basis * np.where(signs == 0, 1, signs)).astype(np.float32)


def _mean(x: Vectors) -> NDArray[np.float64]:
    if len(x) <= _BLOCK:
        return np.asarray(x[:].mean(axis=0, dtype=np.float64))
    total = np.zeros(x.shape[1])
    for start in range(0, len(x), _BLOCK):
        total += x[start : start + _BLOCK].sum(axis=0, dtype=np.float64)
    return total / len(x)


def scatter_matrix(x: Vectors, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """(D, D) sum of (x - mean)(x - mean)ᵀ over (N, D) rows; block by block, so that a mapped file is not read whole."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), _BLOCK):
        block = (x[start : start + _BLOCK] - mean).astype(np.float32)
        total += block.T @ block
    return total
