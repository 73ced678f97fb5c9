"""The nearest rows where another program keeps the vectors and proposes rows member by member, as a vector database.

Every row that some member proposes is scored with all members, from its own vectors.  A row that nobody proposed scores
at most the weighted sum of the members' last proposals; the lists get longer until no such row can be among the
candidates (the threshold algorithm: Fagin, Lotem, Naor, "Optimal aggregation algorithms for middleware", PODS 2001).
So the result is that of a product with all rows, wherever the proposals are the true nearest rows.

N rows, B queries, U proposed rows, M members, D components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cbir.core.search.candidates import Candidates, Wanted, keep_best, no_candidates
from cbir.core.search.early_termination_bound import nth_best
from cbir.core.search.matrices.gallery_matrix import GalleryMatrix
from cbir.core.vote import Conditions, fused_scores

__all__ = ["MAX_DEPTH", "Proposer", "ThresholdSearch"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Fewest and most rows that a member is asked for.
MIN_DEPTH, MAX_DEPTH = 128, 16384
#: Up to this depth all candidates are made certain, so that the members' ranks among them are exact too; beyond it,
#: the hits alone.
RANKS_DEPTH = 512
#: Difference of equal cosines whose terms were summed in another order, in float32.
_ROUNDING = 2e-6


class Proposer(Protocol):
    """Tells the rows nearest to a query by each member alone."""

    def propose(self, queries: Floats, members: Sequence[int], depth: int, conditions: Conditions | None) -> list[Rows]:
        """For each of (B, D) queries, each row that is among the ``depth`` nearest of one of the members, once.

        Args:
            conditions: Only rows that meet them count; None: all rows.
        """
        ...


class ThresholdSearch:
    """Implements :class:`cbir.core.search.nearest_rows.NearestRows`.

    Args:
        matrix: Gives the vectors of single rows.
    """

    def __init__(self, matrix: GalleryMatrix, proposer: Proposer) -> None:
        self._matrix, self._proposer = matrix, proposer

    def find(
        self,
        queries: Floats,
        weights: Floats,
        hits: Sequence[int],
        kept: Sequence[int],
        excluded: Sequence[tuple[int, ...]],
        allowed: NDArray[np.bool_] | None = None,
        conditions: Conditions | None = None,
    ) -> Candidates:
        """See :class:`cbir.core.search.nearest_rows.NearestRows`."""
        return self._find(queries, weights, hits, kept, excluded, allowed, conditions, None)

    def _find(
        self,
        queries: Floats,
        weights: Floats,
        hits: Sequence[int],
        kept: Sequence[int],
        excluded: Sequence[tuple[int, ...]],
        allowed: NDArray[np.bool_] | None,
        conditions: Conditions | None,
        bonus: Floats | None,
    ) -> Candidates:
        """:meth:`find`, by scores and (N,) what is added to the score of each row."""
        count, most = len(self._matrix), np.float32(0 if bonus is None else bonus.max(initial=0))
        wanted = Wanted.of(count, hits, kept, excluded, allowed)
        keep, sure = wanted.keep, wanted.certain
        found = no_candidates(len(queries), weights.shape[1], int(keep.max(initial=0)))
        if not wanted.available or not len(queries):
            return found
        depth = min(count, max(MIN_DEPTH, *(k + e for k, e in zip(keep.tolist(), wanted.lost, strict=True))))
        left = np.arange(len(queries))
        while True:
            deepest = depth >= min(count, MAX_DEPTH)
            rows, similarities, bound = self._round(queries[left], weights[left], depth, conditions)
            fused = fused_scores(similarities, weights[left])
            if bonus is not None:
                fused += bonus[rows]
                bound += most
            self._leave_out(rows, fused, [excluded[i] for i in left.tolist()], allowed)
            # One more than the candidates, so that the bound on all others is a true score.
            ranked = nth_best(fused, keep[left] + 1) >= bound
            certain = nth_best(fused, sure[left]) > bound
            enough = np.isneginf(bound) | (certain & (ranked | (depth >= RANKS_DEPTH))) | deepest
            keep_best(
                rows, similarities, fused, bound, bound, enough, left, keep,
                found.rows, found.similarities, found.score_bound, found.estimate_bound,
            )  # fmt: skip
            left = left[~enough]
            if not len(left):
                return found
            depth = min(count, MAX_DEPTH, 4 * depth)

    def of_labels(
        self, rows: Rows, bonus: Floats, labels: Sequence[int], query: Floats, weights: Floats, count: int
    ) -> tuple[Rows, Floats]:
        """See :class:`cbir.core.search.nearest_rows.NearestRows`."""
        allowed, added = np.zeros(len(self._matrix), np.bool_), np.zeros(len(self._matrix), np.float32)
        allowed[rows], added[rows] = True, bonus
        some = Conditions(labels=tuple(labels))
        found = self._find(query, weights, [count], [count], [()], allowed, some, added)
        there = found.rows[0] >= 0
        return found.rows[:, there], np.ascontiguousarray(found.similarities[:, :, there])

    def _round(
        self, queries: Floats, weights: Floats, depth: int, conditions: Conditions | None
    ) -> tuple[Rows, Floats, Floats]:
        """Ask every member that counts for ``depth`` rows.

        Returns:
            (B, U) rows, -1 where a query has fewer; (B, M, U) exact cosines; and (B,) the bound on the score of rows
            that nobody proposed, -inf where there are none.
        """
        members = np.flatnonzero(weights.any(axis=0)).tolist()
        proposed = self._proposer.propose(queries, members, depth, conditions)
        rows = np.full((len(queries), max(1, *(len(part) for part in proposed))), -1, np.int64)
        for line, part in zip(rows, proposed, strict=True):
            line[: len(part)] = np.sort(part)
        similarities = self._matrix.similarities(rows, queries)
        bound = np.full(len(queries), -np.inf, np.float32)
        for b, part in enumerate(proposed):
            # Members propose ``depth`` rows each, unless there are no more.
            if len(part) >= depth and len(part) < len(self._matrix):
                known = similarities[b, :, : len(part)]
                last = np.partition(known, len(part) - depth, axis=1)[:, len(part) - depth]
                bound[b] = np.float32(weights[b] @ (last + _ROUNDING))
        return rows, similarities, bound

    @staticmethod
    def _leave_out(
        rows: Rows, fused: Floats, excluded: Sequence[tuple[int, ...]], allowed: NDArray[np.bool_] | None
    ) -> None:
        """Set rows that may not be candidates to -1 and their scores to -inf, in place."""
        for line, out in zip(rows, excluded, strict=True):
            if out:
                line[np.isin(line, out)] = -1
        if allowed is not None:
            rows[~allowed[rows]] = -1
        fused[rows < 0] = -np.inf
