"""Exact search with all members at once: the steps from a batch of query vectors to ranked hits.

1. The nearest rows by fused score become candidates.
2. Their labels, and the linear heads, give the probability of each label for the query.
3. A query with a filter gets candidates of its own; step 1 ignores filters, so that every neighbour votes.
4. Images of a likely label are added that may be hits because of its bonus, though they are no candidates.
5. The candidates are ranked.

N rows, B queries, C candidates a query, M members, D components, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import Gallery
from cbir.core.machine import brief
from cbir.core.search.candidates import Candidates, stacked
from cbir.core.search.nearest_rows import NearestRows
from cbir.core.search.per_member_search import POOL
from cbir.core.vote import LabelVote, Ranker, Ranking, SearchSpec, VoteSettings, fused_scores, top_places

__all__ = ["ExactSearch"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


class ExactSearch:
    """Ranks batches of queries against one gallery."""

    def __init__(
        self,
        gallery: Gallery,
        nearest: NearestRows,
        labels: LabelVote,
        ranker: Ranker,
        vote: VoteSettings,
    ) -> None:
        self._gallery, self._nearest = gallery, nearest
        self._labels, self._ranker, self._vote = labels, ranker, vote
        self._rows_of = _rows_by_label(gallery.label_codes, len(gallery.labels))

    def search(
        self, queries: Floats, weights: Floats, specs: Sequence[SearchSpec], heads: Floats | None
    ) -> list[Ranking]:
        """Rank the gallery for B queries.

        Args:
            queries: (B, D).
            weights: (B, M) that sum to 1.
            heads: (B, L) label probabilities of the linear heads, or None.
        """
        voters = self._vote.neighbours if self._gallery.labels else 0
        near = self._nearest.find(
            queries,
            weights,
            [voters if s.mask is not None else max(voters, s.limit) for s in specs],
            [max(voters, POOL if s.mask is not None else max(POOL, 4 * s.limit)) for s in specs],
            [s.exclude_rows for s in specs],
        )
        fused = fused_scores(near.similarities, weights)
        probabilities = self._labels.probabilities(near.rows, fused, heads, specs)
        candidates = self._filtered(near, queries, weights, specs)
        if probabilities is not None and self._vote.label_share > 0:
            candidates = self._with_likely_labels(candidates, queries, weights, specs, probabilities)
        return self._ranker.rank(candidates.rows, candidates.similarities, weights, specs, probabilities)

    def _filtered(self, near: Candidates, queries: Floats, weights: Floats, specs: Sequence[SearchSpec]) -> Candidates:
        """``near``, but for queries with a filter the nearest rows that pass it."""
        found = [near if s.mask is None else None for s in specs]
        if all(found):
            return near
        parts = []
        for i, spec in enumerate(specs):
            one = slice(i, i + 1)
            if spec.mask is None:
                parts.append(near.of(one))
            else:
                parts.append(
                    self._nearest.find(
                        queries[one], weights[one], [spec.limit], [max(POOL, 4 * spec.limit)], [spec.exclude_rows],
                        spec.mask, spec.conditions,
                    )
                )  # fmt: skip
        return stacked(parts)

    def _with_likely_labels(
        self,
        found: Candidates,
        queries: Floats,
        weights: Floats,
        specs: Sequence[SearchSpec],
        probabilities: Floats,
    ) -> Candidates:
        """Add images of likely labels that may be hits and are no candidates yet.

        The label bonus can lift an image over the last hit, however low its fused score.
        """
        scores = fused_scores(found.similarities, weights) + self._ranker.bonus(found.rows, probabilities)
        limits = np.array([spec.limit for spec in specs])
        places = top_places(scores, found.rows, limits)
        liftable = np.empty(probabilities.shape, np.bool_)
        _mark_liftable(
            scores, places, limits, found.score_bound, probabilities, np.float32(self._vote.label_share), liftable
        )
        if not liftable.any():
            return found
        parts = []
        for i, spec in enumerate(specs):
            one = slice(i, i + 1)
            part = found.of(one)
            labels = np.flatnonzero(liftable[i])
            if len(labels):
                rows = np.concatenate([self._rows_of[label] for label in labels.tolist()])
                allowed = spec.allowed(len(self._gallery))
                if allowed is not None:
                    rows = rows[allowed[rows]]
                rows = np.setdiff1d(rows, found.rows[i])
                bonus = self._ranker.bonus(rows[None], probabilities[one])[0]
                rows, similarities = self._nearest.of_labels(
                    rows, bonus, labels.tolist(), queries[one], weights[one], max(POOL, 4 * spec.limit)
                )
                scores = fused_scores(similarities, weights[one])
                scores += self._ranker.bonus(rows, probabilities[one])
                best = top_places(scores, rows, np.array([max(POOL, 4 * spec.limit)]))
                part = Candidates(
                    np.concatenate([part.rows, rows[:, best[0]]], axis=1),
                    np.concatenate([part.similarities, similarities[:, :, best[0]]], axis=2),
                    part.score_bound, part.estimate_bound,
                )  # fmt: skip
            parts.append(part)
        return stacked(parts)


@brief
def _mark_liftable(
    scores: Floats,
    places: Rows,
    limits: Rows,
    score_bound: Floats,
    probabilities: Floats,
    share: np.float32,
    liftable: NDArray[np.bool_],
) -> None:
    """Set ``liftable`` (B, L): may an image that is no candidate be a hit by the bonus of its label?

    It may where the bound on its fused score plus the bonus reaches the score of the last hit.

    Args:
        scores: (B, C) of the candidates, label bonus included.
        places: (B, K) columns of the best candidates, best first, -1 where there are fewer.
        limits: (B,) number of hits.
        score_bound: (B,) of the candidates.
        probabilities: (B, L).
        share: Bonus of a label with probability 1.
    """
    for b in range(len(liftable)):
        last = np.float32(-np.inf)
        if limits[b] <= places.shape[1] and places[b, limits[b] - 1] >= 0:
            last = scores[b, places[b, limits[b] - 1]]
        for label in range(liftable.shape[1]):
            liftable[b, label] = score_bound[b] > -np.inf and score_bound[b] + share * probabilities[b, label] >= last


def _rows_by_label(codes: NDArray[np.integer], classes: int) -> list[Rows]:
    """The rows of each label, ascending."""
    order = np.argsort(codes, kind="stable").astype(np.int64)
    return np.split(order, np.searchsorted(codes[order], np.arange(classes + 1)))[1:-1] if classes else []
