"""Candidates of a batch of queries: rows that are scored exactly, and what is known of all others.

B queries, C candidates a query, M members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import jit

__all__ = ["Candidates", "keep_best", "no_candidates", "stacked"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """The best rows of each query, exactly scored; columns in no particular order.

    Attributes:
        rows: (B, C), -1 where a query has fewer.
        similarities: (B, M, C) cosines.
        bound: (B,) no other row that may be a candidate has a higher fused score; -inf where there is none.
        level: (B,) no row that was not scored has a higher estimate.
    """

    rows: Rows
    similarities: Floats
    bound: Floats
    level: Floats

    def of(self, queries: slice) -> Candidates:
        """Those of some of the queries."""
        return Candidates(self.rows[queries], self.similarities[queries], self.bound[queries], self.level[queries])


def no_candidates(queries: int, members: int, width: int) -> Candidates:
    """Room for ``width`` candidates a query, and none in it."""
    return Candidates(
        np.full((queries, width), -1, np.int64), np.zeros((queries, members, width), np.float32),
        np.full(queries, -np.inf, np.float32), np.full(queries, -np.inf, np.float32),
    )  # fmt: skip


def stacked(parts: Sequence[Candidates]) -> Candidates:
    """One query's candidates below the other's, filled up with rows of -1."""
    width = max(part.rows.shape[1] for part in parts)
    rows = np.full((len(parts), width), -1, np.int64)
    similarities = np.zeros((len(parts), parts[0].similarities.shape[1], width), np.float32)
    for i, part in enumerate(parts):
        rows[i, : part.rows.shape[1]] = part.rows[0]
        similarities[i, :, : part.rows.shape[1]] = part.similarities[0]
    bound, level = (np.concatenate(column) for column in zip(*((p.bound, p.level) for p in parts), strict=True))
    return Candidates(rows, similarities, bound, level)


@jit
def keep_best(
    rows: Rows,
    similarities: Floats,
    fused: Floats,
    bound: Floats,
    level: Floats,
    enough: NDArray[np.bool_],
    places: Rows,
    keep: Rows,
    kept_rows: Rows,
    kept_similarities: Floats,
    kept_bound: Floats,
    kept_level: Floats,
) -> None:
    """Copy the ``keep`` best of the scored rows, for queries with ``enough`` of them, to their ``places`` in the last
    four; what is left out bounds what is no candidate as well."""
    for b in range(rows.shape[0]):
        if not enough[b]:
            continue
        place, limit = places[b], keep[places[b]]
        least, ties = np.float32(-np.inf), 0
        if rows.shape[1] > limit > 0:
            least = np.partition(fused[b], rows.shape[1] - limit)[rows.shape[1] - limit]
            above = 0
            for c in range(rows.shape[1]):
                above += fused[b, c] > least
            ties = limit - above
        # Of those that tie for the last place, the lower rows are kept.
        last_row = np.int64(0)
        if least > -np.inf:
            tied = np.sort(rows[b][fused[b] == least])
            last_row = tied[ties - 1]
        highest, count = bound[b], 0
        for c in range(rows.shape[1]):
            if rows[b, c] < 0:
                continue
            if count < limit and (fused[b, c] > least or (fused[b, c] == least and rows[b, c] <= last_row)):
                kept_rows[place, count] = rows[b, c]
                for m in range(similarities.shape[1]):
                    kept_similarities[place, m, count] = similarities[b, m, c]
                count += 1
            else:
                highest = max(highest, fused[b, c])
        kept_bound[place], kept_level[place] = highest, level[b]
