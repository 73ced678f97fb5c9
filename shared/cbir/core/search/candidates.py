"""Candidates of a batch of queries: rows with exact scores, and bounds on the scores of all other rows.

B queries, C candidates a query, M members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import brief

__all__ = ["Candidates", "Wanted", "keep_best", "no_candidates", "stacked"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """The best rows of each query; columns in no particular order.

    Attributes:
        rows: (B, C), -1 where a query has fewer.
        similarities: (B, M, C) exact cosines.
        score_bound: (B,) upper bound on the fused score of the allowed rows not in ``rows``; -inf: none is left.
        estimate_bound: (B,) no row that was not rescored has a higher estimate.
    """

    rows: Rows
    similarities: Floats
    score_bound: Floats
    estimate_bound: Floats

    def of(self, queries: slice) -> Candidates:
        """The candidates of a slice of the queries."""
        return Candidates(
            self.rows[queries], self.similarities[queries], self.score_bound[queries], self.estimate_bound[queries]
        )


@dataclass(frozen=True)
class Wanted:
    """What queries ask for, as far as the gallery has it.

    Attributes:
        available: Rows that they may find.
        lost: B numbers: so many of these are excluded.
        certain: (B,) how many of the best rows must be certain.
        keep: (B,) how many candidates they get at most.
    """

    available: int
    lost: list[int]
    certain: Rows
    keep: Rows

    @classmethod
    def of(
        cls,
        count: int,
        hits: Sequence[int],
        kept: Sequence[int],
        excluded: Sequence[tuple[int, ...]],
        allowed: NDArray[np.bool_] | None,
    ) -> Wanted:
        """From the arguments of :meth:`cbir.core.search.nearest_rows.NearestRows.find`, for ``count`` rows."""
        available = count if allowed is None else int(np.count_nonzero(allowed))
        lost = [len(set(rows)) if allowed is None else int(allowed[list(set(rows))].sum()) for rows in excluded]
        certain = np.array([min(h, available - e) for h, e in zip(hits, lost, strict=True)], np.int64)
        return cls(available, lost, certain, np.array([min(k, available) for k in kept], np.int64))


def no_candidates(queries: int, members: int, width: int) -> Candidates:
    """Arrays with room for ``width`` candidates a query, all rows -1."""
    return Candidates(
        np.full((queries, width), -1, np.int64), np.zeros((queries, members, width), np.float32),
        np.full(queries, -np.inf, np.float32), np.full(queries, -np.inf, np.float32),
    )  # fmt: skip


def stacked(parts: Sequence[Candidates]) -> Candidates:
    """A batch from the candidates of single queries, padded with -1 to the longest."""
    width = max(part.rows.shape[1] for part in parts)
    rows = np.full((len(parts), width), -1, np.int64)
    similarities = np.zeros((len(parts), parts[0].similarities.shape[1], width), np.float32)
    for i, part in enumerate(parts):
        rows[i, : part.rows.shape[1]] = part.rows[0]
        similarities[i, :, : part.rows.shape[1]] = part.similarities[0]
    bounds = zip(*((p.score_bound, p.estimate_bound) for p in parts), strict=True)
    score_bound, estimate_bound = (np.concatenate(column) for column in bounds)
    return Candidates(rows, similarities, score_bound, estimate_bound)


@brief
def keep_best(
    rows: Rows,
    similarities: Floats,
    fused: Floats,
    score_bound: Floats,
    estimate_bound: Floats,
    enough: NDArray[np.bool_],
    places: Rows,
    keep: Rows,
    kept_rows: Rows,
    kept_similarities: Floats,
    kept_score_bound: Floats,
    kept_estimate_bound: Floats,
) -> None:
    """Copy the best rescored rows of the finished queries into the arrays of a batch's candidates.

    A rescored row that is not kept raises the score bound where its score is higher.

    Args:
        rows: (Q, W), -1 where there is none.
        similarities: (Q, M, W).
        fused: (Q, W).
        score_bound: (Q,) on the rows that were not rescored.
        estimate_bound: (Q,).
        enough: (Q,) the queries that are finished; others are left out.
        places: (Q,) places of the queries in the batch.
        keep: (B,) most rows to keep, by place in the batch.
        kept_rows: (B, C); this and the following are written to.
        kept_similarities: (B, M, C).
        kept_score_bound: (B,).
        kept_estimate_bound: (B,).
    """
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
        # Of the rows that tie for the last place, those with the lower numbers are kept.
        last_row = np.int64(0)
        if least > -np.inf:
            tied = np.sort(rows[b][fused[b] == least])
            last_row = tied[ties - 1]
        highest, count = score_bound[b], 0
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
        kept_score_bound[place], kept_estimate_bound[place] = highest, estimate_bound[b]
