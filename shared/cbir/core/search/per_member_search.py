"""Search member by member: for approximate indexes, which hold one member's vectors each, and for fusion by rank.

Each member proposes its nearest rows, and all members rescore all proposals, so that a hit's score is complete even if
only one member proposed it.  The lists get longer until no row that nobody proposed can be a hit (the threshold
algorithm: Fagin, Lotem, Naor, "Optimal aggregation algorithms for middleware", PODS 2001), or until ``MAX_DEPTH``.

N rows, M members, D components, L labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cbir.core.search.matrices.gallery_matrix import GalleryMatrix
from cbir.core.vector_index import VectorIndex
from cbir.core.vote import Fusion, LabelVote, Ranker, Ranking, SearchSpec, fused_scores, top_places

__all__ = ["POOL", "PerMemberSearch"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Fewest candidates that are rescored, however few hits are asked for.
POOL = 128
#: Longest list that is asked of an approximate index.
MAX_DEPTH = 4096


class PerMemberSearch:
    """Ranks one query at a time.

    Args:
        indexes: One a member; None where the member's part of ``matrix`` is searched exactly.
        label_share: Bonus of a label with probability 1.
    """

    def __init__(
        self,
        matrix: GalleryMatrix,
        indexes: Sequence[VectorIndex | None],
        ranker: Ranker,
        labels: LabelVote,
        label_share: float,
    ) -> None:
        self._matrix, self._indexes, self._ranker, self._labels = matrix, indexes, ranker, labels
        self._label_share = label_share
        self._parts = [slice(a, b) for a, b in itertools.pairwise(matrix.stops)]

    def search(
        self, query: Floats, weights: Floats, spec: SearchSpec, allowed: NDArray[np.bool_] | None, heads: Floats | None
    ) -> Ranking:
        """Rank the gallery for one query.

        Args:
            query: (D,).
            weights: (M,) that sum to 1.
            allowed: (N,) rows that may be hits, or None for all.
            heads: (1, L) label probabilities of the linear heads, or None.
        """
        count = len(self._matrix)
        possible = count if allowed is None else int(allowed.sum())
        depth = min(count, max(POOL, 4 * spec.limit))
        probabilities: Floats | None = None
        while True:
            proposed, bound = [], 0.0
            for m in np.flatnonzero(weights).tolist():
                rows, similarities = self._propose(m, query, depth)
                proposed.append(rows)
                bound += float(weights[m]) * (float(similarities.min()) if len(similarities) else -1.0)
            rows = np.unique(np.concatenate(proposed))
            if probabilities is None:
                probabilities = self._probabilities(rows, query, weights, spec, heads)
            if allowed is not None and possible <= MAX_DEPTH:
                # Indexes know no filter.  This one leaves so few images that scoring all of them is the cheapest.
                return self._rank(np.flatnonzero(allowed), query, weights, spec, probabilities)
            if allowed is not None:
                rows = rows[allowed[rows]]
            exact = spec.fusion is not Fusion.WEIGHTED_VOTE
            complete = len(rows) >= min(spec.limit, possible)
            if complete and not exact and len(rows):
                # A row that nobody proposed scores at most the weighted sum of the members' last proposals, plus the
                # bonus of the likeliest label.
                if probabilities is not None:
                    bound += self._label_share * float(probabilities.max(initial=0))
                whole = SearchSpec(spec.limit)
                exact = float(self._rank(rows, query, weights, whole, probabilities).fused[-1]) >= bound
            deepest = depth >= min(count, MAX_DEPTH)
            if complete and (exact or deepest):
                return self._rank(rows, query, weights, spec, probabilities)
            if deepest:
                # The longest lists hold too few allowed images: score everything that is allowed.
                everything = np.arange(count) if allowed is None else np.flatnonzero(allowed)
                return self._rank(everything, query, weights, spec, probabilities)
            depth = min(count, 4 * depth)

    def nearest(self, query: Floats, weights: Floats, count: int) -> tuple[Rows, Floats]:
        """The ``count`` best of the rows that the members propose, best first, and their fused scores."""
        depth = min(len(self._matrix), max(POOL, count))
        rows = np.unique(np.concatenate([self._propose(m, query, depth)[0] for m in np.flatnonzero(weights).tolist()]))
        fused = fused_scores(self._matrix.similarities(rows[None], query[None]), weights[None])
        best = top_places(fused, rows[None], np.array([count]))[0]
        return rows[best], fused[0, best]

    def _propose(self, m: int, query: Floats, depth: int) -> tuple[Rows, Floats]:
        part = query[None, self._parts[m]]
        index = self._indexes[m]
        if index is None:
            rows, similarities = self._matrix.best(part, depth, member=m)
            return rows[0], similarities[0]
        rows, similarities = index.search(part, depth)
        found = rows[0] >= 0
        return rows[0][found], similarities[0][found]

    def _probabilities(
        self, rows: Rows, query: Floats, weights: Floats, spec: SearchSpec, heads: Floats | None
    ) -> Floats | None:
        near = rows[~np.isin(rows, spec.exclude_rows)][None]
        fused = fused_scores(self._matrix.similarities(near, query[None]), weights[None])
        return self._labels.probabilities(near, fused, heads, [spec])

    def _rank(
        self, rows: Rows, query: Floats, weights: Floats, spec: SearchSpec, probabilities: Floats | None
    ) -> Ranking:
        similarities = self._matrix.similarities(rows[None], query[None])
        return self._ranker.rank(rows[None], similarities, weights[None], [spec], probabilities, spec.fusion)[0]
