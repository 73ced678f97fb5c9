"""Candidate generation for tuning: the gallery images that any sensible vote could rank high for a query.

Shapes: B queries, n gallery images, M members, at most C candidates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import jit

__all__ = ["find_candidates", "most_candidates", "products", "rows_by_class"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

#: Numbers of candidates of a query: the best by all members together, the best by each member alone, and, of so many of
#: the most likely classes, so many each.
TOGETHER, ALONE, LIKELY, EACH = 200, 40, 3, 12


def most_candidates(members: int, opinions: int, gallery: int) -> int:
    """C, the most candidates that a query can have.

    Args:
        opinions: Number of sources that each name :data:`LIKELY` classes.
    """
    return min(gallery, TOGETHER + members * ALONE + opinions * LIKELY * EACH)


def find_candidates(scores: Floats, share: Floats, likely: Ints, class_rows: Ints, most: int) -> tuple[Ints, Ints]:
    """Find the candidates of some queries.

    Args:
        scores: (M, B, n) cosines.
        share: (M,) weights that sum to 1.
        likely: (B, any) numbers of the classes that are likely for each query.
        class_rows: The result of :func:`rows_by_class`.
        most: C, from :func:`most_candidates`.

    Returns:
        (B, C) rows, the best by all members together first, padded with -1; and (B,) the number of candidates.
    """
    fused = np.tensordot(share, scores, axes=1)
    found = [_leading(fused, TOGETHER), *(_leading(one, ALONE) for one in scores)]
    for codes in likely.T:
        rows = class_rows[codes]
        values = np.where(rows >= 0, np.take_along_axis(fused, rows, axis=1), -np.inf)
        found.append(np.take_along_axis(rows, _leading(values, EACH), axis=1))
    rows = np.sort(np.concatenate(found, axis=1), axis=1)
    again = rows < 0
    again[:, 1:] |= rows[:, 1:] == rows[:, :-1]
    values = np.where(again, -np.inf, np.take_along_axis(fused, rows, axis=1))
    order = np.argsort(-values, axis=1, kind="stable")[:, :most]
    counts = (~again).sum(axis=1)
    rows = np.take_along_axis(rows, order, axis=1)
    rows[np.arange(rows.shape[1]) >= counts[:, None]] = -1
    return np.pad(rows, ((0, 0), (0, most - rows.shape[1])), constant_values=-1).astype(np.int32), counts.astype(
        np.int32
    )


def rows_by_class(codes: Ints, classes: int) -> Ints:
    """(L, size of the largest class) gallery rows of each class, padded with -1."""
    sizes = np.bincount(codes[codes >= 0], minlength=classes)
    class_rows = np.full((classes, max(1, sizes.max(initial=0))), -1, np.int32)
    for code, size in enumerate(sizes):
        class_rows[code, :size] = np.flatnonzero(codes == code)
    return class_rows


def _leading(values: Floats, count: int) -> NDArray[np.int64]:
    """(B, count) positions of the largest values of each row, in no particular order."""
    if values.shape[1] <= count:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    return np.argpartition(values, values.shape[1] - count, axis=1)[:, -count:]


@jit
def products(queries: Floats, gallery: Floats, rows: Ints, counts: Ints, found: Floats) -> None:
    """Write to ``found`` (B, C) the inner products of queries (B, d) with the gallery's rows (B, C)."""
    for b in range(len(rows)):
        for k in range(counts[b]):
            total = np.float32(0)
            other = gallery[rows[b, k]]
            for d in range(len(other)):
                total += queries[b, d] * other[d]
            found[b, k] = total
