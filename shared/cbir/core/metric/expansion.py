"""Query expansion and database-side augmentation: a vector becomes the weighted mean of itself and its neighbours.

This brings images of the same kind closer together, without labels (Arandjelovic and Zisserman, "Three things everyone
should know to improve object retrieval", CVPR 2012).  A neighbour's weight is its similarity to the power alpha
(Radenovic, Tolias, Chum, "Fine-tuning CNN image retrieval", TPAMI 2019).

N gallery rows, B queries, K neighbours, M members.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cbir.core.metric.unit_vectors import normalise

__all__ = ["augmented", "block_normalise", "expanded", "nearest"]

Floats = NDArray[np.float32]

#: Most gallery rows for which neighbours are found exactly; in larger galleries an HNSW graph finds most of them.
EXACT_ROWS = 60_000
_BLOCK = 2048


def block_normalise(x: Floats, dims: Sequence[int]) -> Floats:
    """Scale each member's part of each (B, sum of dims) row to unit length; parts that are zero stay zero."""
    stops = np.cumsum((0, *dims))
    return np.concatenate([normalise(x[:, a:b]) for a, b in itertools.pairwise(stops)], axis=1)


def expanded(queries: Floats, neighbours: Floats, similarities: Floats, exponent: float, dims: Sequence[int]) -> Floats:
    """Queries moved towards their nearest gallery vectors.

    Args:
        queries: (B, sum of dims) the members' unit vectors side by side; parts that are zero stay zero.
        neighbours: (B, K, sum of dims) likewise.
        similarities: (B, K) fused cosines; negative ones count as zero.
        exponent: alpha.
        dims: Length of each member's part.

    Returns:
        (B, sum of dims) float32, each part of unit length or zero.
    """
    influence = np.asarray(np.maximum(similarities, 0) ** exponent, np.float32)
    moved = block_normalise(queries + np.matmul(influence[:, None], neighbours)[:, 0], dims)
    for a, b in itertools.pairwise(np.cumsum((0, *dims))):
        moved[~queries[:, a:b].any(axis=1), a:b] = 0
    return moved


def augmented(
    matrix: Floats, dims: Sequence[int], neighbours: int, exponent: float, weights: Floats | None = None
) -> Floats:
    """Every gallery vector moved towards its nearest neighbours.

    Args:
        matrix: (N, sum of dims) the members' unit vectors side by side.
        dims: Length of each member's part.
        neighbours: K, at least 1.  The vector itself is one of them, so K = 1 changes nothing.
        exponent: alpha.
        weights: (M,) of the members, for finding neighbours; None for equal ones.

    Returns:
        (N, sum of dims) float32, each part of unit length.
    """
    share = np.full(len(dims), 1 / len(dims)) if weights is None else np.asarray(weights) / np.sum(weights)
    scaled = matrix * np.repeat(np.sqrt(share), dims).astype(np.float32)
    rows, similarities = nearest(scaled, scaled, min(neighbours, len(matrix)))
    influence = np.clip(similarities, 0, None) ** exponent
    result = np.empty_like(matrix, dtype=np.float32)
    for start in range(0, len(matrix), _BLOCK):
        part = slice(start, start + _BLOCK)
        mean = np.einsum("bk,bkd->bd", influence[part], matrix[rows[part]])
        result[part] = block_normalise(np.asarray(mean, np.float32), dims)
    return result


def nearest(queries: Floats, gallery: Floats, count: int) -> tuple[NDArray[np.int64], Floats]:
    """The ``count`` gallery rows with the largest inner products, best first: (B, count) rows and products."""
    if len(gallery) > EXACT_ROWS:
        import faiss

        graph = faiss.IndexHNSWFlat(gallery.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = 80
        graph.add(np.ascontiguousarray(gallery, np.float32))
        graph.hnsw.efSearch = max(64, 2 * count)
        products, rows = graph.search(np.ascontiguousarray(queries, np.float32), count)
        return rows, products
    # Imported here: it takes seconds, and an update that finds nothing new has no use for it.
    import torch

    base = torch.from_numpy(np.ascontiguousarray(gallery, np.float32))
    found_rows, found = [], []
    for start in range(0, len(queries), _BLOCK):
        block = torch.from_numpy(np.ascontiguousarray(queries[start : start + _BLOCK], np.float32))
        best = torch.topk(block @ base.T, count)
        found_rows.append(best.indices.numpy())
        found.append(best.values.numpy())
    return np.concatenate(found_rows), np.concatenate(found)
