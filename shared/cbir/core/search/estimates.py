"""Estimates: the rows of the gallery that score highest for a query by a cheap approximation of the fused score.

They come from a scan of product quantisation codes, from a product with all rows in half precision, or from one with
the rows as they are, whose only errors are those of summing in another order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cbir.core.search.kernels.half_product import HalfProduct
from cbir.core.search.matrices.gallery_matrix import GalleryMatrix

if TYPE_CHECKING:
    from cbir.core.search.product_quantisation_scan import QuantisedScan

__all__ = ["EstimatedRows", "Source", "estimate", "unfiltered_depth"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
#: What makes estimates: None for the product with all rows as they are.
Source: TypeAlias = "QuantisedScan | HalfProduct | None"


@dataclass(frozen=True)
class EstimatedRows:
    """K rows for each of B queries, the highest estimate first.

    Attributes:
        rows: (B, K), -1 where a query has fewer.
        estimates: (B, K) of the fused scores, -inf where a query has fewer rows.
        unlisted: (B,) the highest estimate that a row outside the list may have; -inf where the list is complete.
        errors: (B,) proven bounds on the difference of score and estimate; None where there are none.
    """

    rows: Rows
    estimates: Floats
    unlisted: Floats
    errors: Floats | None = None

    @classmethod
    def without_scores(cls, rows: Rows, queries: int) -> EstimatedRows:
        """The same ``rows`` for each of ``queries`` queries: a complete list, for rows that will all be rescored."""
        listed = np.tile(rows, (queries, 1))
        return cls(listed, np.zeros(listed.shape, np.float32), np.full(queries, -np.inf, np.float32))

    def of(self, queries: NDArray[np.bool_]) -> EstimatedRows:
        """The lists of the chosen (B,) queries."""
        errors = None if self.errors is None else self.errors[queries]
        return EstimatedRows(self.rows[queries], self.estimates[queries], self.unlisted[queries], errors)


def estimate(
    matrix: GalleryMatrix, source: Source, queries: Floats, depth: int, allowed: NDArray[np.bool_] | None
) -> EstimatedRows:
    """List the rows with the highest estimates.

    Args:
        source: A scan, or a product in half precision; None: the product with all rows as they are.
        queries: (B, D), each member's part multiplied by its weight; B is 1 where ``allowed`` is given.
        depth: Rows to list; fewer only where fewer are allowed.  A filtered scan may list some more or some less.
        allowed: (N,) rows that may be listed, or None for all.
    """
    count = len(matrix)
    errors = None
    if isinstance(source, HalfProduct):
        rows, estimates = source.search(queries, depth, allowed)
        errors = source.error(queries)
    elif source is None:
        rows, estimates = matrix.best(queries, depth, allowed)
    else:
        if allowed is not None:
            depth = unfiltered_depth(depth, allowed)
        rows, estimates = source.search(queries, depth)
    unlisted = estimates[:, -1] if depth < count else np.full(len(rows), -np.inf, np.float32)
    if allowed is not None:
        passed = allowed[rows[0]]
        rows, estimates = rows[:, passed], estimates[:, passed]
    return EstimatedRows(rows, estimates, unlisted, errors)


def unfiltered_depth(depth: int, allowed: NDArray[np.bool_]) -> int:
    """Rows that a scan, which knows no filter, must list for ``depth`` of them to pass it, if it is like any other."""
    return min(len(allowed), int(depth * len(allowed) / max(1, int(np.count_nonzero(allowed)))) + 1)
