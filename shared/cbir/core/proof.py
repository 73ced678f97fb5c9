"""How deep a search must look: what the errors of estimates that were checked say of those that were not.

B queries, C candidates a query.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["barred_rows", "nth_best", "proof"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Standard deviations of the estimates' errors that a row is given the benefit of.
_DEVIATIONS = 6.0
#: Rounding of scores that are equal but for the order of their sums.
_ROUNDING = 2e-6


def proof(
    fused: Floats, errors: Floats, estimates: Floats, want: Rows, there: NDArray[np.bool_] | None
) -> tuple[Floats, Floats]:
    """The score of the last hit that counts, and by how much at most an estimate lower than all of these is too low.

    Quantisation takes more from what is near than from the rest, so the errors rise with the estimates; what is not
    scored has lower estimates, and on the mean no larger errors than the lowest of those that were scored.

    Args:
        fused: (B, C) exact scores, -inf where a row may not be a hit.
        errors: (B, C) exact scores less estimates, 0 where there is no row.
        estimates: (B, C).
        want: (B,) hits that count.
        there: (B, C) where there are rows; None: everywhere.

    Returns:
        (B,) both.
    """
    present: Rows | int = max(1, fused.shape[1])
    lowest = estimates.min(axis=1, initial=np.inf)
    if there is not None:
        present = np.maximum(np.count_nonzero(there, axis=1), 1)
        lowest = np.where(there, estimates, np.float32(np.inf)).min(axis=1, initial=np.inf)
        estimates = np.where(there, estimates, np.float32(0))
    mean, centre = errors.sum(axis=1) / present, estimates.sum(axis=1) / present
    variance = np.einsum("bc,bc->b", errors, errors) / present - mean * mean
    width = np.maximum(np.einsum("bc,bc->b", estimates, estimates) / present - centre * centre, 0)
    common = np.einsum("bc,bc->b", estimates, errors) / present - mean * centre
    slope = np.where(width > 1e-9, np.maximum(common, 0) / np.maximum(width, 1e-9), 0)
    spread = np.sqrt(np.maximum(variance - slope * slope * width, 0))
    expected = mean + slope * np.minimum(lowest - centre, 0)
    margin = np.asarray(expected + _DEVIATIONS * spread + _ROUNDING, dtype=np.float32)
    return nth_best(fused, want), margin


def barred_rows(rows: Rows, barred: Sequence[tuple[int, ...]]) -> NDArray[np.bool_]:
    """(B, C) which rows are barred."""
    result = np.zeros(rows.shape, bool)
    for i, out in enumerate(barred):
        if len(out) <= 4:
            for row in out:
                result[i] |= rows[i] == row
        else:
            result[i] = np.isin(rows[i], out)
    return result


def nth_best(fused: Floats, nth: Rows) -> Floats:
    """(B,) the ``nth`` largest (from 1) of each row of (B, C); -inf where there are fewer, inf where none is asked."""
    columns = fused.shape[1]
    if columns == 0:
        return np.where(nth > 0, np.float32(-np.inf), np.float32(np.inf))
    last: Floats = np.sort(fused, axis=1)[np.arange(len(fused)), columns - np.clip(nth, 1, columns)]
    if nth.min() < 1 or nth.max() > columns:
        last = np.where(nth > columns, np.float32(-np.inf), np.where(nth < 1, np.float32(np.inf), last))
    return last
