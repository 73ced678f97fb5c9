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

from cbir.core.machine import brief_or_long, jit, row_ranges, shared_out
from cbir.core.search.matrices.cpu_matrix import CpuMatrix

__all__ = ["SAMPLE_ROWS", "QuantisedScan", "balanced_groups"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Vectors on which the centroids are trained.
SAMPLE_ROWS = 2048
_BLOCK_ROWS = 16384
_BITS = 4
_ROUNDS = 6
#: Rows below which a further thread costs more than it brings.
_ROWS_A_THREAD = 32768
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
    """The codes of all rows of a gallery, in memory: a range of the rows for each thread.

    Args:
        sample: (K, D) vectors of the gallery on which the centroids are trained.
        components: How many share a group on average: 2 (the codes take an eighth of the bytes of float16), 4 or 8.
        block: Rows in a block of the codes' layout in memory, a multiple of 32; processors differ in which is fastest.

    Attributes:
        worst_rows: (W,) rows with exceptionally large quantisation errors, the largest first: they are unlike the
            sample on which the centroids were trained.
        worst_errors: (W,) the most by which their estimates can be wrong, for the weights given to :meth:`fill`.  By
            the Cauchy-Schwarz inequality this is the weighted sum over members of the norm of (vector - centroids).
    """

    worst_rows: Rows
    worst_errors: Floats

    def __init__(self, sample: Floats, components: int, block: int = 32) -> None:
        width, most = sample.shape[1], 2 * components
        groups = balanced_groups(sample.var(axis=0), max(2, -(-width // components)), most)
        self.groups = len(groups)
        # FAISS needs groups of equal length: shorter ones are filled up with zeros, which stand nowhere (-1).
        self._places = np.array([group + [-1] * (most - len(group)) for group in groups]).ravel()
        self._coder = faiss.ProductQuantizer(len(self._places), len(groups), _BITS)
        # A few rounds of k-means suffice.  FAISS fixes the seed, so the same gallery gives the same codes.
        self._coder.cp.niter = _ROUNDS
        self._coder.cp.min_points_per_centroid = 1
        self._coder.train(self._spread(sample))
        self._block = block
        #: By range of rows.
        self._indexes: dict[tuple[int, int], Any] = {}

    def arrange(self, block: int) -> None:
        """Lay codes out in blocks of so many rows from now on."""
        self._block = block

    def fill(self, matrix: CpuMatrix, weights: Floats, worst: int) -> None:
        """Encode all rows of a gallery, and set ``worst_rows`` and ``worst_errors``.

        Args:
            weights: (M,) of the members, for the errors.
            worst: Most rows to list in ``worst_rows``.
        """
        members = np.repeat(np.arange(len(weights)), np.diff(matrix.stops))[self._places]
        errors = np.empty(len(matrix), np.float32)

        def encode(low: int, high: int) -> Any:
            codes = np.empty((high - low, self._coder.code_size), np.uint8)
            for start in range(low, high, _BLOCK_ROWS):
                vectors = self._spread(matrix.sample(slice(start, min(start + _BLOCK_ROWS, high))))
                coded = codes[start - low : start - low + len(vectors)] = self._coder.compute_codes(vectors)
                _lost(vectors, self._coder.decode(coded), members, weights, errors[start : start + len(vectors)])
            return self._laid_out(codes)

        ranges = row_ranges(len(matrix), _ROWS_A_THREAD)
        self._indexes = dict(zip(ranges, shared_out(encode, ranges), strict=True))
        rows = np.argsort(-errors, kind="stable")[:worst]
        rows = rows[errors[rows] > _WORSE * np.median(errors)]
        self.worst_rows, self.worst_errors = rows.astype(np.int64), errors[rows]

    def _laid_out(self, codes: NDArray[np.uint8]) -> Any:
        """An index of these codes.  By way of a plain one: what encodes itself does not give its codes away again."""
        plain = faiss.IndexPQ(self._coder.d, self._coder.M, _BITS, faiss.METRIC_INNER_PRODUCT)
        plain.pq, plain.is_trained, plain.ntotal = self._coder, True, len(codes)
        faiss.copy_array_to_vector(codes.ravel(), plain.codes)
        return faiss.IndexPQFastScan(plain, self._block)

    def encode(self, vectors: Floats) -> NDArray[np.uint8]:
        """(K, bytes) codes of (K, D) vectors."""
        codes: NDArray[np.uint8] = self._coder.compute_codes(self._spread(vectors))
        return codes

    def hold(self, codes: NDArray[np.uint8]) -> None:
        """Hold these codes alone, for trials before :meth:`fill`."""
        ranges = row_ranges(len(codes), _ROWS_A_THREAD)
        self._indexes = {(low, high): self._laid_out(codes[low:high]) for low, high in ranges}

    def estimates(self, vectors: Floats, queries: Floats) -> Floats:
        """(B, C) estimates for (B, C, D) vectors, each query with its own; for a scan before :meth:`fill`."""
        result = np.empty(vectors.shape[:2], np.float32)
        for own, query, out in zip(vectors, queries, result, strict=True):
            self.hold(self.encode(own))
            rows, estimates = self.search(query[None], len(own))
            out[rows[0]] = estimates[0]
        return result

    def _spread(self, vectors: Floats) -> Floats:
        spread = np.empty((len(vectors), len(self._places)), np.float32)
        _spread(np.ascontiguousarray(vectors, np.float32), self._places, spread)
        return spread

    def search(self, queries: Floats, count: int) -> tuple[Rows, Floats]:
        """(B, count) rows with the largest estimates for (B, D) queries, best first, and the estimates."""
        spread = self._spread(queries)

        def search_in(low: int, high: int) -> tuple[Rows, Floats]:
            index = self._indexes[low, high]
            # Once any library has imported faiss.contrib.torch_utils, search() takes tensors, search_numpy() arrays.
            estimates, rows = getattr(index, "search_numpy", index.search)(spread, min(count, high - low))
            return np.asarray(rows, np.int64), np.asarray(estimates, np.float32)

        ranges = list(self._indexes)
        found = shared_out(search_in, ranges)
        if len(found) == 1:
            return found[0]
        rows = np.concatenate([part + low for (part, _), (low, _) in zip(found, ranges, strict=True)], axis=1)
        estimates = np.concatenate([part for _, part in found], axis=1)
        best = np.argsort(-estimates, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(rows, best, axis=1), np.take_along_axis(estimates, best, axis=1)


@brief_or_long
def _spread(vectors: Floats, places: NDArray[np.int64], spread: Floats) -> None:
    """Copy the components at (P,) places of (K, D) vectors into (K, P); those at -1 are 0."""
    for row in range(vectors.shape[0]):
        for column in range(len(places)):
            place = places[column]
            spread[row, column] = vectors[row, place] if place >= 0 else np.float32(0)


@jit
def _lost(vectors: Floats, decoded: Floats, members: Rows, weights: Floats, errors: Floats) -> None:
    """Write (K,) the weighted sum over members of the norm of what (K, P) vectors lost, (P,) members by column."""
    squares = np.empty(len(weights), np.float32)
    for row in range(vectors.shape[0]):
        squares[:] = 0
        for column in range(vectors.shape[1]):
            lost = vectors[row, column] - decoded[row, column]
            squares[members[column]] += lost * lost
        total = np.float32(0)
        for member in range(len(weights)):
            total += weights[member] * np.sqrt(squares[member])
        errors[row] = total
