"""Product quantisation scan: the fused score of every row, estimated from short codes instead of its vector.

The components are split into groups, and each group of a row is replaced by the nearest of 16 centroids: a code of four
bits.  For a query, the 16 products with each group's centroids are computed once; a row's estimate is the sum of the
products that its codes select.  Queries come multiplied by the members' weights, so the codes serve any weights.

Sources: Jegou, Douze, Schmid, "Product quantization for nearest neighbor search", TPAMI 2011; Andre, Kermarrec, Le
Scouarnec, "Cache locality is not enough", VLDB 2015 (four-bit codes, looked up in registers).  FAISS implements both.
"""

from __future__ import annotations

import heapq
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from cbir.core.search.matrices.cpu_matrix import CpuMatrix

__all__ = ["SAMPLE_ROWS", "QuantisedScan", "balanced_groups"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Vectors on which the centroids are trained.
SAMPLE_ROWS = 2048
_BLOCK_ROWS = 16384
_BITS = 4
_ROUNDS = 6
#: A quantisation error above this many times the median marks a poorly coded row.
_WORSE = 1.25


def balanced_groups(loads: NDArray[np.floating], groups: int, most: int) -> list[list[int]]:
    """Split components into groups of about the same total variance.

    The components of trained projections differ in variance by orders of magnitude, and each group gets four bits: a
    component of large variance is best alone in its group, while those of small variance share one.  With GLRT
    projections this at least halves the error of the estimates.

    Args:
        loads: (D,) variances.
        groups: Number of groups, at least D / ``most``.
        most: Most components in a group.

    Returns:
        The components of each group: in the order of falling variance, each goes to the group with the smallest total
        that has room.
    """
    members: list[list[int]] = [[] for _ in range(groups)]
    room = [(0.0, g) for g in range(groups)]
    for component in np.argsort(-loads, kind="stable").tolist():
        load, g = heapq.heappop(room)
        members[g].append(component)
        if len(members[g]) < most:
            heapq.heappush(room, (load + float(loads[component]), g))
    return members


class QuantisedScan:
    """The codes of all rows of a gallery, in memory.

    Args:
        sample: (K, D) vectors of the gallery on which the centroids are trained.
        components: How many share a group on average: 2 (the codes take an eighth of the bytes of float16), 4 or 8.

    Attributes:
        worst_rows: (W,) rows with exceptionally large quantisation errors, the largest first: they are unlike the
            sample on which the centroids were trained.
        worst_errors: (W,) the most by which their estimates can be wrong, for the weights given to :meth:`fill`.  By
            the Cauchy-Schwarz inequality this is the weighted sum over members of the norm of (vector - centroids).
    """

    worst_rows: Rows
    worst_errors: Floats

    def __init__(self, sample: Floats, components: int) -> None:
        width, most = sample.shape[1], 2 * components
        groups = balanced_groups(sample.var(axis=0), max(2, -(-width // components)), most)
        self.groups = len(groups)
        # FAISS needs groups of equal length: shorter ones are filled up with a component that is always zero.
        self._places = np.array([group + [width] * (most - len(group)) for group in groups]).ravel()
        # Rows in a block of the codes' memory layout: the faster value was found by measuring.
        block = 32 if components <= 2 else 96
        self._index: Any = faiss.IndexPQFastScan(
            len(self._places), len(groups), _BITS, faiss.METRIC_INNER_PRODUCT, block
        )
        # A few rounds of k-means suffice.  FAISS fixes the seed, so the same gallery gives the same codes.
        self._index.pq.cp.niter = _ROUNDS
        self._index.pq.cp.min_points_per_centroid = 1
        self._index.train(self._spread(sample))

    def fill(self, matrix: CpuMatrix, weights: Floats, worst: int) -> None:
        """Encode all rows of a gallery, and set ``worst_rows`` and ``worst_errors``.

        Args:
            weights: (M,) of the members, for the errors.
            worst: Most rows to list in ``worst_rows``.
        """
        self._index.reset()
        members = np.append(np.repeat(np.arange(len(weights)), np.diff(matrix.stops)), 0)[self._places]
        share = np.eye(len(weights), dtype=np.float32)[members]
        errors = np.empty(len(matrix), np.float32)
        for start in range(0, len(matrix), _BLOCK_ROWS):
            vectors = self._spread(matrix.sample(slice(start, start + _BLOCK_ROWS)))
            self._index.add(vectors)
            # Encoded a second time, because FAISS cannot read the codes back from every layout.
            coder = self._index.pq
            lost = coder.decode(coder.compute_codes(vectors))
            lost -= vectors
            errors[start : start + len(vectors)] = np.sqrt(np.square(lost, out=lost) @ share) @ weights
        rows = np.argsort(-errors, kind="stable")[:worst]
        rows = rows[errors[rows] > _WORSE * np.median(errors)]
        self.worst_rows, self.worst_errors = rows.astype(np.int64), errors[rows]

    def code(self, vectors: Floats) -> None:
        """Hold the codes of (K, D) vectors alone, for trials before :meth:`fill`."""
        self._index.reset()
        self._index.add(self._spread(vectors))

    def estimates(self, vectors: Floats, queries: Floats) -> Floats:
        """(B, C) estimates for (B, C, D) vectors, each query with its own; for a scan before :meth:`fill`."""
        result = np.empty(vectors.shape[:2], np.float32)
        for own, query, out in zip(vectors, queries, result, strict=True):
            self.code(own)
            rows, estimates = self.search(query[None], len(own))
            out[rows[0]] = estimates[0]
        return result

    def _spread(self, vectors: Floats) -> Floats:
        padded = np.zeros((len(vectors), vectors.shape[1] + 1), np.float32)
        padded[:, :-1] = vectors
        return np.take(padded, self._places, axis=1)

    def search(self, queries: Floats, count: int) -> tuple[Rows, Floats]:
        """(B, count) rows with the largest estimates for (B, D) queries, best first, and the estimates."""
        # Once any library has imported faiss.contrib.torch_utils, search() takes tensors, search_numpy() arrays.
        search = getattr(self._index, "search_numpy", self._index.search)
        estimates, rows = search(self._spread(queries), count)
        return np.asarray(rows, np.int64), np.asarray(estimates, np.float32)
