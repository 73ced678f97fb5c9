"""Early termination: may a row that was not rescored still be among the hits?

The errors of the estimates (exact score minus estimate) are measured on the rows that were rescored.  Quantisation
shrinks high scores more than low ones, so the errors grow with the estimates; a line fitted to them gives the error to
be expected at the lowest estimate that was rescored.  All other rows have lower estimates still, so their errors are
on average no larger.  Six standard deviations are added.  Products in half precision have proven bounds instead.

B queries, W rescored rows and K listed rows a query.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import brief, jit

__all__ = ["bound_the_rest", "nth_best", "padded_rows"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Standard deviations above the expected error that an estimate is assumed to be off by at most.
_DEVIATIONS = 6.0
#: Difference of equal scores whose terms were summed in another order, in float32.
_ROUNDING = 2e-6


def padded_rows(lists: Sequence[tuple[int, ...]]) -> Rows:
    """(B, X) from B lists of rows, filled up with -1."""
    result = np.full((len(lists), max(map(len, lists), default=0)), -1, np.int64)
    if result.size:
        for line, rows in zip(result, lists, strict=True):
            line[: len(rows)] = rows
    return result


def nth_best(fused: Floats, nth: Rows) -> Floats:
    """(B,) the ``nth`` (B,) largest, from 1, of each row of (B, W); -inf where there are fewer, inf where nth is 0."""
    result = np.empty(len(fused), np.float32)
    _nth_best_of_each(fused, nth, result)
    return result


def bound_the_rest(
    fused: Floats,
    rows: Rows,
    estimates: Floats,
    unlisted: Floats,
    scored: Rows,
    hits: Rows,
    excluded: Rows,
    errors: Floats | None = None,
) -> tuple[Rows, Floats, Floats]:
    """How many rows of a list must be rescored, and what the rows that were tell about all others.

    Args:
        fused: (B, W) exact scores of the first rows of the list; set to -inf where the row is excluded or padding.
        rows: (B, W); set to -1 there.
        estimates: (B, K) of the whole list, falling; K is at least W.
        unlisted: (B,) no row outside the list has a higher estimate; -inf where the list is complete.
        scored: (B,) how many rows of each query's list were rescored, at most W.
        hits: (B,) how many of the best rows must be certain.
        excluded: (B, X) rows that may not be hits, filled up with -1.
        errors: (B,) proven bounds on the errors of estimates; None: they are measured on the rows that were rescored.

    Returns:
        needed: (B,) rows of the list that must be rescored, K + 1 where the list is too short.
        score_bound: (B,) no row that was not rescored has a higher score.
        estimate_bound: (B,) no row that was not rescored has a higher estimate.
    """
    # Numba compiles a loop anew for arrays of another memory layout.
    estimates, unlisted = np.ascontiguousarray(estimates), np.ascontiguousarray(unlisted)
    count = len(rows)
    needed = np.empty(count, np.int64)
    score_bound, estimate_bound = np.empty(count, np.float32), np.empty(count, np.float32)
    proven = np.full(count, np.nan, np.float32) if errors is None else errors
    _bound_the_rest(
        fused, rows, estimates, unlisted, scored, hits, excluded, proven, needed, score_bound, estimate_bound
    )
    return needed, score_bound, estimate_bound


@jit
def _nth_best(values: Floats, nth: int) -> np.float32:
    if nth < 1:
        return np.float32(np.inf)
    if nth > len(values):
        return np.float32(-np.inf)
    last: np.float32 = np.partition(values, len(values) - nth)[len(values) - nth]
    return last


@brief
def _nth_best_of_each(fused: Floats, nth: Rows, result: Floats) -> None:
    for b in range(len(fused)):
        result[b] = _nth_best(fused[b], nth[b])


@jit
def _largest_error(fused: Floats, rows: Rows, estimates: Floats) -> np.float32:
    """An upper bound on score minus estimate of a row whose estimate is below all of these."""
    count, mean, centre = 0, 0.0, 0.0
    lowest = np.inf
    for c in range(len(rows)):
        if rows[c] >= 0:
            count += 1
            mean += fused[c] - estimates[c]
            centre += estimates[c]
            lowest = min(lowest, estimates[c])
    if count == 0:
        return np.float32(_ROUNDING)
    mean, centre = mean / count, centre / count
    variance, width, common = 0.0, 0.0, 0.0
    for c in range(len(rows)):
        if rows[c] >= 0:
            error, off = fused[c] - estimates[c] - mean, estimates[c] - centre
            variance += error * error
            width += off * off
            common += off * error
    slope = max(common, 0.0) / width if width > 1e-9 * count else 0.0
    spread = np.sqrt(max(variance - slope * slope * width, 0.0) / count)
    return np.float32(mean + slope * (lowest - centre) + _DEVIATIONS * spread + _ROUNDING)


@brief
def _bound_the_rest(
    fused: Floats,
    rows: Rows,
    estimates: Floats,
    unlisted: Floats,
    scored: Rows,
    hits: Rows,
    excluded: Rows,
    proven: Floats,
    needed: Rows,
    score_bound: Floats,
    estimate_bound: Floats,
) -> None:
    width = estimates.shape[1]
    for b in range(rows.shape[0]):
        for c in range(scored[b], rows.shape[1]):
            rows[b, c] = -1
        # Before the excluded rows are removed: their errors tell as much.
        error = proven[b] if proven[b] >= 0 else _largest_error(fused[b], rows[b], estimates[b])
        for c in range(rows.shape[1]):
            for x in range(excluded.shape[1]):
                if excluded[b, x] == rows[b, c]:
                    rows[b, c] = -1
            if rows[b, c] < 0:
                fused[b, c] = -np.inf
        # A row with a lower estimate than this scores less than the last hit.
        least = _nth_best(fused[b], hits[b]) - error
        highest = unlisted[b]
        if highest >= least and highest > -np.inf:
            needed[b] = width + 1
        else:
            count = 0
            for k in range(width):
                count += estimates[b, k] >= least
            needed[b] = count
        if scored[b] < width:
            highest = max(highest, estimates[b, scored[b]])
        score_bound[b], estimate_bound[b] = highest + error, highest
