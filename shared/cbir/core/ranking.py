"""Ranking: scored candidates become hits, in order, each with the votes that made it one.

B queries, C candidates a query, M members, L labels.  Candidates come as (B, C) rows, -1 where a query has fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cbir.core.calibration import probability_of_relevance
from cbir.core.fusion import Fusion, rank_contributions, vote_contributions
from cbir.core.vote_settings import VoteSettings

__all__ = ["Ranker", "Ranking", "SearchSpec", "best_first", "fused_scores"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Labels that are named with a ranking, and how likely each must be.
_NAMED, _LEAST = 5, 0.005


@dataclass(frozen=True)
class SearchSpec:
    """How one query is to be answered.

    Attributes:
        weights: (M,) non-negative, or None for the index's own.
        mask: (N,) images that may be hits, or None for all.
        exclude_rows: Rows that may not be hits.
        min_score: Hits with a lower (calibrated) score are left out.
        label_prior: (L,) P(label | query) from elsewhere (class names), summing to how far it is to be trusted, 0..1;
            or None.
    """

    limit: int = 10
    weights: Floats | None = None
    fusion: Fusion = Fusion.WEIGHTED_VOTE
    mask: NDArray[np.bool_] | None = None
    exclude_rows: tuple[int, ...] = ()
    min_score: float | None = None
    label_prior: Floats | None = None


@dataclass(frozen=True)
class Ranking:
    """The hits of one query, best first (K hits, M members).

    Attributes:
        rows: (K,) gallery rows.
        scores: (K,) in 0..1, falling with the rank.
        fused: (K,) sum of a row of ``contributions`` plus ``label_contributions``.
        similarities: (K, M) cosines.
        ranks: (K, M) each member's own rank among the candidates that were scored, from 1.
        labels: The likeliest classes and their probabilities, best first.
    """

    rows: NDArray[np.int64]
    scores: Floats
    fused: Floats
    similarities: Floats
    ranks: NDArray[np.int64]
    contributions: Floats
    label_contributions: Floats
    labels: list[tuple[str, float]] = field(default_factory=list)


def best_first(scores: Floats, rows: Rows) -> Rows:
    """Places along the last axis in falling order of score, ties in order of row; rows of -1 come last.

    Rows are in id order, so ties break by image id.

    Args:
        scores: (..., C), finite where there is a row.
        rows: Of a shape that broadcasts to it; below 2**32.
    """
    # One integer a candidate, as sorting integers is several times faster than sorting by two keys.  The bits of a
    # float, negative ones turned over, are ordered as the float is; adding 0 turns -0 into 0.
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)
    falling = ~np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = np.where(rows >= 0, (falling << 32) | rows, np.iinfo(np.int64).max)
    return np.argsort(keys, axis=-1)


def fused_scores(similarities: Floats, weights: Floats) -> Floats:
    """(B, C) weighted sums of (B, M, C) cosines by (B, M) weights."""
    total = similarities[:, 0] * weights[:, :1]
    for m in range(1, weights.shape[1]):
        total += similarities[:, m] * weights[:, m : m + 1]
    return total


class Ranker:
    """Orders candidates and explains the order.

    Args:
        codes: (N,) label numbers of the gallery, -1 where there is none.
        labels: The L labels' names.
    """

    def __init__(self, codes: NDArray[np.integer], labels: Sequence[str], vote: VoteSettings) -> None:
        self._codes, self._labels, self._vote = codes, labels, vote

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
            rows: (B, C), all of which may be hits.
            similarities: (B, M, C).
            weights: (B, M) that sum to 1.
            specs: B of them; their limits and thresholds count here.
            probabilities: (B, L) P(label | query), or None; the row of a query without an opinion is zero.
        """
        line = np.arange(len(specs))[:, None]
        order = best_first(similarities, rows[:, None])
        ranks = np.empty(order.shape, np.int64)
        ranks[line[:, :, None], np.arange(weights.shape[1])[:, None], order] = np.arange(1, rows.shape[1] + 1)
        if fusion is Fusion.RECIPROCAL_RANK:
            given = rank_contributions(ranks, weights[:, :, None])
            fused = given.sum(axis=1)
        else:
            fused = fused_scores(similarities, weights)
        bonus = self.bonus(rows, probabilities)
        fused = fused + bonus
        limit = min(max(spec.limit for spec in specs), rows.shape[1])
        places = best_first(fused, rows)[:, :limit]
        rows, fused, bonus = rows[line, places], fused[line, places], bonus[line, places]
        # (B, K, M), as rankings have it.
        similarities, ranks = similarities[line, :, places], ranks[line, :, places]
        if fusion is Fusion.RECIPROCAL_RANK:
            contributions = rank_contributions(ranks, weights[:, None])
        else:
            contributions = vote_contributions(similarities, weights)
        scores = self._calibrate(fused)
        kept = (rows >= 0).sum(axis=1).tolist()
        named = self._name(probabilities, len(specs))
        rankings = []
        for i, (spec, count) in enumerate(zip(specs, kept, strict=True)):
            count = min(count, spec.limit)
            if spec.min_score is not None:
                # Scores fall with the rank.
                count = min(count, int((scores[i] >= spec.min_score).sum()))
            rankings.append(
                Ranking(
                    rows[i, :count], scores[i, :count], fused[i, :count], similarities[i, :count], ranks[i, :count],
                    contributions[i, :count], bonus[i, :count], named[i],
                )
            )  # fmt: skip
        return rankings

    def bonus(self, rows: Rows, probabilities: Floats | None) -> Floats:
        """(B, C) what the candidates' labels add to their scores."""
        if probabilities is None or self._vote.label_share <= 0:
            return np.zeros(rows.shape, np.float32)
        codes = self._codes[rows]
        found = probabilities[np.arange(len(rows))[:, None], codes] * np.float32(self._vote.label_share)
        return np.asarray(found * ((codes >= 0) & (rows >= 0)), dtype=np.float32)

    def _calibrate(self, fused: Floats) -> Floats:
        if self._vote.calibration is None:
            # Uncalibrated, the score is the fused cosine itself, of which a negative one means "nothing alike".
            top = 1.0 + self._vote.label_share
            return np.asarray(np.clip(fused / np.float32(top), 0, 1), dtype=np.float32)
        return probability_of_relevance(fused, self._vote.calibration)

    def _name(self, probabilities: Floats | None, count: int) -> list[list[tuple[str, float]]]:
        found: list[list[tuple[float, int]]] = [[] for _ in range(count)]
        if probabilities is not None:
            queries, codes = np.nonzero(probabilities > _LEAST)
            for i, code, value in zip(
                queries.tolist(), codes.tolist(), probabilities[queries, codes].tolist(), strict=True
            ):
                found[i].append((-value, code))
        return [[(self._labels[code], -value) for value, code in sorted(likely)[:_NAMED]] for likely in found]
