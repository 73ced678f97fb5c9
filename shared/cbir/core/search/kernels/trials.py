"""Trial queries, and how many rows a search by estimates has to score for them until its hits are proven.

Half of the queries are images of the gallery that may not find themselves, so they are like new ones of its kind.  The
others are such images moved towards another one: what users ask with is less like a gallery than the gallery is.

T trial queries, C listed rows a query, D components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbir.core.metric import make_unit
from cbir.core.search.early_termination_bound import bound_the_rest, padded_rows
from cbir.core.search.matrices.cpu_matrix import CpuMatrix

__all__ = ["NEAR", "Trials", "trial_queries"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Rows on which the errors of estimates are measured.
NEAR = 128
_TRIALS = 16
#: Hits that must be proven.
_HITS = 10
#: How far the second half of the queries is moved towards another image.
_MOVED = 0.5


def trial_queries(matrix: CpuMatrix, weights: Floats, count: int = _TRIALS) -> tuple[Floats, Rows]:
    """Queries with each member's part multiplied by its weight.

    Returns:
        (T, D) queries, and (T,) the row that each may not find; -1: none.
    """
    own = np.linspace(0, len(matrix) - 1, count).astype(np.int64)
    # Images of both halves come from the whole gallery.
    own = np.concatenate([own[::2], own[1::2]])
    vectors = matrix.vectors_of(own).copy()
    moved = slice(count // 2, None)
    vectors[moved] += _MOVED * matrix.vectors_of(np.roll(own, count // 4)[moved])
    for start, stop in zip(matrix.stops, matrix.stops[1:], strict=False):
        part = np.ascontiguousarray(vectors[:, start:stop])
        make_unit(part)
        vectors[:, start:stop] = part
    own[moved] = -1
    return vectors * np.repeat(weights, np.diff(matrix.stops)), own


@dataclass(frozen=True)
class Trials:
    """The best rows of the trial queries by a product with all rows.

    Attributes:
        queries: (T, D), the weights multiplied in.
        rows: (T, C), best first.
        products: (T, C).
        near: (T, NEAR, D) the vectors of the first rows.
    """

    queries: Floats
    rows: Rows
    products: Floats
    near: Floats

    @classmethod
    def of(cls, matrix: CpuMatrix, weights: Floats, most: int) -> Trials:
        """Ask the gallery, for ``most`` rows a query."""
        queries, own = trial_queries(matrix, weights)
        listed = min(len(matrix), most + 1)
        rows, products = matrix.best(queries, listed)
        # Where a query is one of the images, that one is left out; elsewhere the last.
        drop = np.where((rows == own[:, None]).any(axis=1), (rows == own[:, None]).argmax(axis=1), listed - 1)
        kept = np.arange(listed)[None] != drop[:, None]
        rows, products = rows[kept].reshape(len(rows), -1), products[kept].reshape(len(rows), -1)
        near = matrix.vectors_of(rows[:, :NEAR].ravel()).reshape(len(rows), -1, queries.shape[1])
        return cls(queries, rows, products, near)

    def needed(self, estimates: Floats) -> Rows:
        """(T,) rows that must be scored, by the errors of (T, NEAR) estimates of the first rows; at most C."""
        count, hits = len(self.rows), min(self.rows.shape[1], _HITS)
        # Copies, because compiled loops take contiguous arrays.
        fused = self.products[:, :NEAR].copy()
        lowest = estimates.min(axis=1)
        want, width = np.full(count, hits), np.full(count, fused.shape[1])
        # With every listed row scored, the score bound is the lowest estimate plus the largest error to be expected.
        _, bound, _ = bound_the_rest(
            fused, self.rows[:, :NEAR].copy(), estimates, lowest, width, want, padded_rows([()] * count)
        )
        return self._above(self._last_hit() - (bound - lowest))

    def needed_with(self, errors: Floats) -> Rows:
        """(T,) the same by (T,) proven bounds on the errors."""
        return self._above(self._last_hit() - errors)

    def _last_hit(self) -> Floats:
        """(T,) the scores that a row must reach to be a hit."""
        return self.products[:, min(self.products.shape[1], _HITS) - 1]

    def _above(self, least: Floats) -> Rows:
        # Estimates lie about the products, so as many are above.
        return np.asarray((self.products >= least[:, None]).sum(axis=1), np.int64)
