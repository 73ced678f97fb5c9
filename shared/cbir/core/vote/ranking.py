"""Ranking: scored candidates become ordered hits, each with what every member and its label contributed.

B queries, C candidates a query, K hits, M members, L labels, N gallery images.  Candidates come as (B, C) rows, -1
where a query has fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import brief
from cbir.core.vote.conditions import Conditions
from cbir.core.vote.fusion import Fusion, fused_scores, rank_contributions, vote_contributions
from cbir.core.vote.settings import VoteSettings
from cbir.core.vote.top_k import ranks_of, top_places

__all__ = ["Ranker", "Ranking", "SearchSpec"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Most labels that come with a ranking, and the probability that each must exceed.
_MAX_LABELS, _MIN_PROBABILITY = 5, 0.005


@dataclass(frozen=True)
class SearchSpec:
    """How one query is to be answered.

    Attributes:
        limit: Most hits.
        weights: (M,) non-negative, or None for the index's own.
        mask: (N,) images that may be hits, or None for all.
        conditions: What ``mask`` stands for, for stores that select images themselves.  They may let more images pass
            than the mask does, and none less; None where nothing is known.
        exclude_rows: Rows that may not be hits.
        min_score: Hits with a lower (calibrated) score are left out.
        label_prior: (L,) P(label | query) by the class names, multiplied by the trust in it, 0..1, so that it sums to
            the trust; or None.
    """

    limit: int = 10
    weights: Floats | None = None
    fusion: Fusion = Fusion.WEIGHTED_VOTE
    mask: NDArray[np.bool_] | None = None
    conditions: Conditions | None = None
    exclude_rows: tuple[int, ...] = ()
    min_score: float | None = None
    label_prior: Floats | None = None

    def allowed(self, count: int) -> NDArray[np.bool_] | None:
        """(N,) images that may be hits, for N = ``count``: mask and excluded rows together; None for all."""
        if not self.exclude_rows:
            return self.mask
        allowed = np.ones(count, bool) if self.mask is None else self.mask.copy()
        allowed[list(self.exclude_rows)] = False
        return allowed


@dataclass(frozen=True)
class Ranking:
    """The hits of one query, best first.

    Attributes:
        rows: (K,) gallery rows.
        scores: (K,) in 0..1, calibrated where the index has a curve; they fall with the rank.
        fused: (K,) sum of a row of ``contributions``, plus ``label_contributions``.
        similarities: (K, M) cosines.
        ranks: (K, M) rank among the rescored candidates by each member alone, from 1.
        contributions: (K, M) what each member adds to the fused score.
        label_contributions: (K,) what the image's label adds.
        labels: The likeliest labels of the query and their probabilities, best first.
    """

    rows: NDArray[np.int64]
    scores: Floats
    fused: Floats
    similarities: Floats
    ranks: NDArray[np.int64]
    contributions: Floats
    label_contributions: Floats
    labels: list[tuple[str, float]] = field(default_factory=list)


class Ranker:
    """Orders candidates and explains the order.

    Args:
        codes: (N,) label numbers of the gallery, -1 where there is none.
        labels: The L labels' names.
    """

    def __init__(self, codes: NDArray[np.integer], labels: Sequence[str], vote: VoteSettings) -> None:
        self._codes, self._labels, self._share = codes, labels, vote.label_share
        # Without calibration the score is the fused score, scaled to 0..1; negative cosines become 0.
        curve = vote.calibration or ((0.0, 0.0), (1.0 + vote.label_share, 1.0))
        self._knots, self._probabilities = (np.array(ends, np.float64) for ends in zip(*curve, strict=True))

    def rank(
        self,
        rows: Rows,
        similarities: Floats,
        weights: Floats,
        specs: Sequence[SearchSpec],
        probabilities: Floats | None,
        fusion: Fusion = Fusion.WEIGHTED_VOTE,
    ) -> list[Ranking]:
        """Rank the candidates of a batch.

        Args:
            rows: (B, C); all of them are allowed as hits.
            similarities: (B, M, C).
            weights: (B, M) that sum to 1.
            specs: B of them; only ``limit`` and ``min_score`` are used.
            probabilities: (B, L) P(label | query), zero rows where it is unknown; or None.
            fusion: The same for all queries.
        """
        bonus = self.bonus(rows, probabilities)
        by_rank = fusion is Fusion.RECIPROCAL_RANK
        if by_rank:
            given = rank_contributions(ranks_of(similarities, rows), weights[:, None])
            scores = given.sum(axis=2) + bonus
        else:
            scores = fused_scores(similarities, weights) + bonus
        places = top_places(scores, rows, np.array([spec.limit for spec in specs]))
        ranks = ranks_of(similarities, rows, places)
        hits, counts = np.empty(places.shape, np.int64), np.empty(len(places), np.int64)
        fused, label = np.empty(places.shape, np.float32), np.empty(places.shape, np.float32)
        relevance, cosines = np.empty(places.shape, np.float32), np.empty(ranks.shape, np.float32)
        _pick(
            places, rows, scores, bonus, similarities, self._knots, self._probabilities,
            hits, counts, fused, label, relevance, cosines,
        )  # fmt: skip
        given = rank_contributions(ranks, weights[:, None]) if by_rank else vote_contributions(cosines, weights)
        named = self._name(probabilities, len(specs))
        rankings = []
        for i, (spec, count) in enumerate(zip(specs, counts.tolist(), strict=True)):
            if spec.min_score is not None:
                # Scores fall with the rank.
                count = int(np.count_nonzero(relevance[i, :count] >= spec.min_score))
            rankings.append(
                Ranking(
                    hits[i, :count], relevance[i, :count], fused[i, :count], cosines[i, :count], ranks[i, :count],
                    given[i, :count], label[i, :count], named[i],
                )
            )  # fmt: skip
        return rankings

    def bonus(self, rows: Rows, probabilities: Floats | None) -> Floats:
        """(B, C) label bonus: what the candidates' labels add to their scores."""
        result = np.zeros(rows.shape, np.float32)
        if probabilities is not None and self._share > 0:
            _add_bonus(rows, self._codes, probabilities, np.float32(self._share), result)
        return result

    def _name(self, probabilities: Floats | None, count: int) -> list[list[tuple[str, float]]]:
        if probabilities is None:
            return [[] for _ in range(count)]
        codes = np.empty((count, _MAX_LABELS), np.int64)
        _likeliest(probabilities, _MIN_PROBABILITY, codes)
        return [
            [(self._labels[code], float(said[code])) for code in likely if code >= 0]
            for likely, said in zip(codes.tolist(), probabilities, strict=True)
        ]


@brief
def _add_bonus(
    rows: Rows, codes: NDArray[np.integer], probabilities: Floats, share: np.float32, result: Floats
) -> None:
    for b in range(rows.shape[0]):
        for c in range(rows.shape[1]):
            row = rows[b, c]
            if row >= 0 and codes[row] >= 0:
                result[b, c] = probabilities[b, codes[row]] * share


@brief
def _pick(
    places: Rows,
    rows: Rows,
    scores: Floats,
    bonus: Floats,
    similarities: Floats,
    knots: NDArray[np.float64],
    probabilities: NDArray[np.float64],
    hits: Rows,
    counts: Rows,
    fused: Floats,
    label: Floats,
    relevance: Floats,
    cosines: Floats,
) -> None:
    """Copy the candidates at the (B, K) places into the last six arrays; zeros where there is none."""
    for b in range(places.shape[0]):
        counts[b] = 0
        for k in range(places.shape[1]):
            c = places[b, k]
            counts[b] += c >= 0
            hits[b, k] = rows[b, c] if c >= 0 else -1
            fused[b, k] = scores[b, c] if c >= 0 else 0
            label[b, k] = bonus[b, c] if c >= 0 else 0
            relevance[b, k] = np.interp(fused[b, k], knots, probabilities) if c >= 0 else 0
            for m in range(similarities.shape[1]):
                cosines[b, k, m] = similarities[b, m, c] if c >= 0 else 0


@brief
def _likeliest(probabilities: Floats, least: float, codes: Rows) -> None:
    """Write the numbers of each query's n likeliest labels into (B, n) ``codes``, best first, ties to the lower number.

    Where fewer than n labels exceed ``least``, the rest is -1.
    """
    for b in range(len(codes)):
        codes[b] = -1
        for label in range(probabilities.shape[1]):
            value = probabilities[b, label]
            if value <= least:
                continue
            at = codes.shape[1]
            while at > 0 and (codes[b, at - 1] < 0 or value > probabilities[b, codes[b, at - 1]]):
                at -= 1
                if at + 1 < codes.shape[1]:
                    codes[b, at + 1] = codes[b, at]
            if at < codes.shape[1]:
                codes[b, at] = label
