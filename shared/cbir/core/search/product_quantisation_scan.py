"""A scan of four-bit codes: every row's fused score is estimated from a small part of its bytes.

Components are quantised in groups, each group to one of 16 centroids, and the 16 products of a query with a group's
centroids are looked up in registers (product quantisation: Jegou, Douze, Schmid, "Product quantization for nearest
neighbor search", TPAMI 2011; four-bit lookups: Andre, Kermarrec, Le Scouarnec, "Cache locality is not enough", VLDB
2015; here by FAISS).  The query's parts carry the weights, so one scan serves any weights.
"""

from __future__ import annotations

import heapq
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from cbir.core.search.cpu_matrix import CpuMatrix

__all__ = ["SAMPLE_ROWS", "QuantisedScan", "balanced_groups"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Vectors that teach the centroids.
SAMPLE_ROWS = 2048
_BLOCK_ROWS = 16384
_BITS = 4
_ROUNDS = 6
#: Errors of so many times the median are not what the sample led to expect.
_WORSE = 1.25


def balanced_groups(loads: NDArray[np.floating], groups: int, most: int) -> list[list[int]]:
    """Spread components over groups so that no group holds much more than its share.

    Components of trained projections differ in variance by orders of magnitude.  A code spent on a pair of weak ones
    is wasted; strong ones get a group of their own, and weak ones share.  With members' projections by GLRT this halves
    the error of the estimates or better.

    Args:
        loads: (D,) non-negative: variances.
        groups: At least D / ``most``.
        most: Components of a group, at most.

    Returns:
        The components of each group: the heaviest first, always to the lightest group that has room.
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
    """Codes of all rows of a gallery, in memory.

    Args:
        sample: (K, D) vectors of the gallery, which teach the centroids.
        components: How many share a group on average: 2 (codes of an eighth of the float16 rows' bytes), 4 or 8.

    Attributes:
        worst_rows: (W,) rows with the worst codes, worst first: rows unlike the sample that taught the centroids.
        worst_errors: (W,) by how much their estimates can be wrong at most, with the weights that the scan was filled
            for (Cauchy and Schwarz: the weighted sum of the lengths of what the members' parts lost).
    """

    worst_rows: Rows
    worst_errors: Floats

    def __init__(self, sample: Floats, components: int) -> None:
        width, most = sample.shape[1], 2 * components
        groups = balanced_groups(sample.var(axis=0), max(2, -(-width // components)), most)
        self.groups = len(groups)
        # FAISS wants groups of one length: the rest of each is filled with a component that is always zero.
        self._places = np.array([group + [width] * (most - len(group)) for group in groups]).ravel()
        # The layout of the codes; which is the faster was measured.
        block = 32 if components <= 2 else 96
        self._index: Any = faiss.IndexPQFastScan(
            len(self._places), len(groups), _BITS, faiss.METRIC_INNER_PRODUCT, block
        )
        # Few rounds suffice, and the seed is fixed: the same gallery gives the same codes.
        self._index.pq.cp.niter = _ROUNDS
        self._index.pq.cp.min_points_per_centroid = 1
        self._index.train(self._spread(sample))

    def fill(self, matrix: CpuMatrix, weights: Floats, worst: int) -> None:
        """Encode all rows of a gallery, and remember those whose codes are the worst.

        Args:
            weights: (M,) of the members, by which the errors of their parts count.
            worst: How many are remembered, at most.
        """
        self._index.reset()
        members = np.append(np.repeat(np.arange(len(weights)), np.diff(matrix.stops)), 0)[self._places]
        share = np.eye(len(weights), dtype=np.float32)[members]
        errors = np.empty(len(matrix), np.float32)
        for start in range(0, len(matrix), _BLOCK_ROWS):
            vectors = self._spread(matrix.sample(slice(start, start + _BLOCK_ROWS)))
            self._index.add(vectors)
            # Coded anew, as FAISS does not read codes back from every layout.
            coder = self._index.pq
            lost = coder.decode(coder.compute_codes(vectors))
            lost -= vectors
            errors[start : start + len(vectors)] = np.sqrt(np.square(lost, out=lost) @ share) @ weights
        rows = np.argsort(-errors, kind="stable")[:worst]
        rows = rows[errors[rows] > _WORSE * np.median(errors)]
        self.worst_rows, self.worst_errors = rows.astype(np.int64), errors[rows]

    def estimates(self, vectors: Floats, queries: Floats) -> Floats:
        """(B, C) what a scan says of (B, C, D) vectors, each query with its own; for a scan that is not filled yet."""
        result = np.empty(vectors.shape[:2], np.float32)
        for own, query, out in zip(vectors, queries, result, strict=True):
            self._index.reset()
            self._index.add(self._spread(own))
            rows, estimates = self.search(query[None], len(own))
            out[rows[0]] = estimates[0]
        return result

    def _spread(self, vectors: Floats) -> Floats:
        padded = np.zeros((len(vectors), vectors.shape[1] + 1), np.float32)
        padded[:, :-1] = vectors
        return np.take(padded, self._places, axis=1)

    def search(self, queries: Floats, count: int) -> tuple[Rows, Floats]:
        """The rows of the largest estimates for (B, D) queries, best first: (B, count) rows and estimates."""
        # Where some library has imported faiss.contrib.torch_utils, search() takes tensors.
        search = getattr(self._index, "search_numpy", self._index.search)
        estimates, rows = search(self._spread(queries), count)
        return np.asarray(rows, np.int64), np.asarray(estimates, np.float32)
