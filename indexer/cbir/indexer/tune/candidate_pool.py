"""Which gallery images a query is scored on while votes are tried: all that any sensible vote could rank high.

Shapes: B queries, n gallery images, M members, C candidates at most.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import jit

__all__ = ["most_candidates", "pooled", "products", "rows_by_class"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

#: Candidates of a query: the best by the members together, by each alone, and of each of the likeliest classes.
TOGETHER, ALONE, LIKELY, EACH = 200, 40, 3, 12


def most_candidates(members: int, opinions: int, gallery: int) -> int:
    """C: the most that a query can have.

    Args:
        opinions: Sources that name :data:`LIKELY` classes each.
    """
    return min(gallery, TOGETHER + members * ALONE + opinions * LIKELY * EACH)


def pooled(scores: Floats, share: Floats, likely: Ints, kin: Ints, most: int) -> tuple[Ints, Ints]:
    """Find the candidates of some queries.

    Args:
        scores: (M, B, n) cosines.
        share: (M,) weights that sum to 1.
        likely: (B, any) class numbers.
        kin: What :func:`rows_by_class` gives.
        most: What :func:`most_candidates` says.

    Returns:
        (B, C) rows, best first by the members together and -1 beyond the last, and (B,) how many there are.
    """
    fused = np.tensordot(share, scores, axes=1)
    found = [_leading(fused, TOGETHER), *(_leading(one, ALONE) for one in scores)]
    for codes in likely.T:
        rows = kin[codes]
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
    """(L, size of the largest) the gallery rows of each class, -1 where a class has fewer."""
    sizes = np.bincount(codes[codes >= 0], minlength=classes)
    kin = np.full((classes, max(1, sizes.max(initial=0))), -1, np.int32)
    for code, size in enumerate(sizes):
        kin[code, :size] = np.flatnonzero(codes == code)
    return kin


def _leading(values: Floats, count: int) -> NDArray[np.int64]:
    """(B, count) places of the largest values of each row, in no order."""
    if values.shape[1] <= count:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    return np.argpartition(values, values.shape[1] - count, axis=1)[:, -count:]


@jit
def products(queries: Floats, gallery: Floats, rows: Ints, counts: Ints, found: Floats) -> None:
    """Fill ``found`` (B, C) with the inner products of (B, d) queries and the gallery's rows (B, C)."""
    for b in range(len(rows)):
        for k in range(counts[b]):
            total = np.float32(0)
            other = gallery[rows[b, k]]
            for d in range(len(other)):
                total += queries[b, d] * other[d]
            found[b, k] = total
