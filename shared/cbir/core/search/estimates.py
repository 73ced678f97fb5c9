"""Estimates: the rows of the gallery that score highest for a query by a cheap approximation of the fused score.

They come from a scan of product quantisation codes, or, where there is none or it would have to list too many rows,
from the product with all rows, whose only errors are those of rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cbir.core.search.matrices.gallery_matrix import GalleryMatrix
from cbir.core.search.scan_tuning import max_scan_depth

if TYPE_CHECKING:
    from cbir.core.search.product_quantisation_scan import QuantisedScan

__all__ = ["EstimatedRows", "estimate"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class EstimatedRows:
    """K rows for each of B queries, the highest estimate first.

    Attributes:
        rows: (B, K), -1 where a query has fewer.
        estimates: (B, K) of the fused scores, -inf where a query has fewer rows.
        unlisted: (B,) the highest estimate that a row outside the list may have; -inf where the list is complete.
    """

    rows: Rows
    estimates: Floats
    unlisted: Floats

    @classmethod
    def without_scores(cls, rows: Rows, queries: int) -> EstimatedRows:
        """The same ``rows`` for each of ``queries`` queries: a complete list, for rows that will all be rescored."""
        listed = np.tile(rows, (queries, 1))
        return cls(listed, np.zeros(listed.shape, np.float32), np.full(queries, -np.inf, np.float32))

    def of(self, queries: NDArray[np.bool_]) -> EstimatedRows:
        """The lists of the chosen (B,) queries."""
        return EstimatedRows(self.rows[queries], self.estimates[queries], self.unlisted[queries])


def estimate(
    matrix: GalleryMatrix, scan: QuantisedScan | None, queries: Floats, depth: int, allowed: NDArray[np.bool_] | None
) -> EstimatedRows:
    """List the rows with the highest estimates.

    Args:
        scan: None where the gallery has no codes.
        queries: (B, D), each member's part multiplied by its weight; B is 1 where ``allowed`` is given.
        depth: Rows to list; fewer only where fewer are allowed.  A filtered scan may list some more or some less.
        allowed: (N,) rows that may be listed, or None for all.
    """
    count = len(matrix)
    if scan is not None and depth <= max_scan_depth(count):
        if allowed is not None:
            # The scan knows no filter: it lists more rows, in proportion to those that the filter removes afterwards.
            depth = min(count, int(depth * count / max(1, int(np.count_nonzero(allowed)))) + 1)
        rows, estimates = scan.search(queries, depth)
        unlisted = estimates[:, -1] if depth < count else np.full(len(rows), -np.inf, np.float32)
        if allowed is not None:
            passed = allowed[rows[0]]
            rows, estimates = rows[:, passed], estimates[:, passed]
        return EstimatedRows(rows, estimates, unlisted)
    rows, products = matrix.best(queries, depth, allowed)
    rows[np.isneginf(products)] = -1
    unlisted = products[:, -1] if depth < count else np.full(len(rows), -np.inf, np.float32)
    return EstimatedRows(rows, products, unlisted)
