"""How deep a search must look: what the errors of estimates that were checked say of those that were not.

Quantisation takes more from what is near than from the rest, so the errors rise with the estimates; what is not scored
has lower estimates, and on the mean no larger errors than the lowest of those that were scored.

B queries, C candidates a query.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import jit

__all__ = ["barred_rows", "nth_best", "prove"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Standard deviations of the estimates' errors that a row is given the benefit of.
_DEVIATIONS = 6.0
#: Rounding of scores that are equal but for the order of their sums.
_ROUNDING = 2e-6


def barred_rows(barred: Sequence[tuple[int, ...]]) -> Rows:
    """(B, X) the rows that each query may not have, filled up with -1."""
    result = np.full((len(barred), max(map(len, barred), default=0)), -1, np.int64)
    if result.size:
        for line, rows in zip(result, barred, strict=True):
            line[: len(rows)] = rows
    return result


def nth_best(fused: Floats, nth: Rows) -> Floats:
    """(B,) the ``nth`` largest (from 1) of each row of (B, C); -inf where there are fewer, inf where none is asked."""
    result = np.empty(len(fused), np.float32)
    _nth_best_of_each(fused, nth, result)
    return result


def prove(
    fused: Floats, rows: Rows, estimates: Floats, floor: Floats, scored: Rows, want: Rows, barred: Rows
) -> tuple[Rows, Floats, Floats]:
    """How many of a list must be scored, and what those that were say of the rest.

    Args:
        fused: (B, W) exact scores of the first of a list; becomes -inf where a row may not be a hit.
        rows: (B, W); become -1 there.
        estimates: (B, K) of the whole list, falling; K is at least W.
        floor: (B,) no row that is not listed has a higher estimate; -inf where there is none.
        scored: (B,) how many of a list were scored, at most W.
        want: (B,) hits that count.
        barred: (B, X) rows that may not be hits.

    Returns:
        (B,) how many of the list must be scored, K + 1 where it is too short; (B,) no other row has a higher score;
        (B,) no other row has a higher estimate.
    """
    # Compiled loops are compiled anew for arrays that lie in another way.
    estimates, floor = np.ascontiguousarray(estimates), np.ascontiguousarray(floor)
    count = len(rows)
    needed, bound, level = np.empty(count, np.int64), np.empty(count, np.float32), np.empty(count, np.float32)
    _prove(fused, rows, estimates, floor, scored, want, barred, needed, bound, level)
    return needed, bound, level


@jit
def _nth_best(values: Floats, nth: int) -> np.float32:
    if nth < 1:
        return np.float32(np.inf)
    if nth > len(values):
        return np.float32(-np.inf)
    last: np.float32 = np.partition(values, len(values) - nth)[len(values) - nth]
    return last


@jit
def _nth_best_of_each(fused: Floats, nth: Rows, result: Floats) -> None:
    for b in range(len(fused)):
        result[b] = _nth_best(fused[b], nth[b])


@jit
def _margin(fused: Floats, rows: Rows, estimates: Floats) -> np.float32:
    """By how much at most an estimate that is lower than all of these is too low."""
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


@jit
def _prove(
    fused: Floats,
    rows: Rows,
    estimates: Floats,
    floor: Floats,
    scored: Rows,
    want: Rows,
    barred: Rows,
    needed: Rows,
    bound: Floats,
    level: Floats,
) -> None:
    width = estimates.shape[1]
    for b in range(rows.shape[0]):
        for c in range(scored[b], rows.shape[1]):
            rows[b, c] = -1
        margin = _margin(fused[b], rows[b], estimates[b])
        for c in range(rows.shape[1]):
            for x in range(barred.shape[1]):
                if barred[b, x] == rows[b, c]:
                    rows[b, c] = -1
            if rows[b, c] < 0:
                fused[b, c] = -np.inf
        least = _nth_best(fused[b], want[b]) - margin
        after = floor[b]
        if after >= least and after > -np.inf:
            needed[b] = width + 1
        else:
            count = 0
            for k in range(width):
                count += estimates[b, k] >= least
            needed[b] = count
        if scored[b] < width:
            after = max(after, estimates[b, scored[b]])
        bound[b], level[b] = after + margin, after
