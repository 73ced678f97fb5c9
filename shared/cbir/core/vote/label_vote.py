"""Label vote: P(label | query) from the labels of the nearest images, the linear heads and the class names.

B queries, C candidates a query, D components, L labels, N gallery images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import brief
from cbir.core.vote.linear_heads import Heads
from cbir.core.vote.ranking import SearchSpec
from cbir.core.vote.settings import VoteSettings
from cbir.core.vote.top_k import top_places

__all__ = ["LabelVote", "neighbour_vote", "weighted_mean"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


def neighbour_vote(
    fused: Floats, rows: Rows, codes: NDArray[np.integer], neighbours: int, temperature: float, classes: int
) -> Floats:
    """P(label | query) by the labels of the best candidates, each with the weight exp(score / temperature).

    Args:
        fused: (B, C) scores.
        rows: (B, C) gallery rows, -1 where there is no candidate; of equal scores the lower row comes first.
        codes: (N,) label numbers of the gallery, negative where there is none.
        neighbours: How many of the best candidates vote; those without a label count among them but have no vote.
        classes: L.

    Returns:
        (B, L) whose rows sum to 1, or are zero where no neighbour has a label.
    """
    result = np.zeros((len(rows), classes), np.float32)
    _count_votes(top_places(fused, rows, np.full(len(rows), neighbours)), fused, rows, codes, temperature, result)
    return result


@brief
def _count_votes(
    places: Rows, fused: Floats, rows: Rows, codes: NDArray[np.integer], temperature: float, result: Floats
) -> None:
    for b in range(places.shape[0]):
        top, total = -np.inf, 0.0
        for k in range(places.shape[1]):
            c = places[b, k]
            if c < 0 or codes[rows[b, c]] < 0:
                continue
            if top == -np.inf:
                # Exponents are relative to the best voter, which comes first, so that they do not overflow.
                top = np.float64(fused[b, c])
            vote = np.exp((fused[b, c] - top) / temperature)
            result[b, codes[rows[b, c]]] += vote
            total += vote
        if total > 0:
            for label in range(result.shape[1]):
                result[b, label] /= total


def weighted_mean(sources: Sequence[tuple[Floats | None, float | Floats]]) -> Floats | None:
    """The weighted mean of label probabilities from several sources, over the sources that have any for the query.

    Where only sources with share 0 have probabilities, all of these count the same.

    Args:
        sources: For each source its (B, L) probabilities, with zero rows where it has none, or None where it never has
            any; and its share: one number, or (B,).

    Returns:
        (B, L) with rows that sum to 1, or are zero where no source has probabilities; None where all are None.
    """
    there = [(values, share) for values, share in sources if values is not None]
    if not there:
        return None
    probabilities = np.array([values for values, _ in there])
    shares = np.empty(probabilities.shape[:2], np.float32)
    for row, (_, share) in zip(shares, there, strict=True):
        row[:] = share
    result = np.zeros(probabilities.shape[1:], np.float32)
    _mix(probabilities, shares, result)
    return result


@brief
def _mix(probabilities: Floats, shares: Floats, result: Floats) -> None:
    """Write the mean of the (K, B, L) probabilities of K sources, by their (K, B) shares, into the (B, L) result."""
    given = np.empty(len(probabilities), np.bool_)
    for b in range(probabilities.shape[1]):
        total = 0.0
        for k in range(len(probabilities)):
            given[k] = probabilities[k, b].any()
            if given[k]:
                total += shares[k, b]
        # No source with a share has probabilities: those without count the same.
        equally = total <= 0
        if equally:
            total = np.float64(np.count_nonzero(given))
        for k in range(len(probabilities)):
            if given[k]:
                share = (1.0 if equally else shares[k, b]) / total
                for label in range(probabilities.shape[2]):
                    result[b, label] += probabilities[k, b, label] * share


class LabelVote:
    """P(label | query) for the gallery of an index version.

    Args:
        codes: (N,) label numbers of the gallery, -1 where there is none.
        classes: L; 0 in a gallery without labels.
        heads: The members' linear heads, or None.
    """

    def __init__(self, codes: NDArray[np.integer], classes: int, heads: Heads | None, vote: VoteSettings) -> None:
        self._codes, self._classes, self._heads, self._vote = codes, classes, heads, vote

    def head_probabilities(self, queries: Floats, weights: Floats) -> Floats | None:
        """(B, L) from the linear heads for (B, D) queries, or None without heads."""
        if not self._classes or self._heads is None:
            return None
        return self._heads.probabilities(queries, weights, self._vote.head_temperature)

    def probabilities(
        self, rows: Rows, fused: Floats, heads: Floats | None, specs: Sequence[SearchSpec]
    ) -> Floats | None:
        """P(label | query) from all sources.

        Args:
            rows: (B, C) the nearest images, -1 where there are fewer.
            fused: (B, C) their scores.
            heads: From :meth:`head_probabilities`, for the queries before query expansion.
            specs: B of them; their ``label_prior`` holds the probabilities by class names.

        Returns:
            (B, L), zero rows where there is nothing to go by; None in a gallery without labels.
        """
        if not self._classes:
            return None
        vote = self._vote
        near = neighbour_vote(fused, rows, self._codes, vote.neighbours, vote.temperature, self._classes)
        names, trust = self._name_probabilities(specs)
        text_share = vote.text_share * trust
        return weighted_mean([
            (heads, vote.head_share * (1 - text_share)),
            (names, text_share),
            (near, (1 - vote.head_share) * (1 - text_share)),
        ])  # fmt: skip

    def _name_probabilities(self, specs: Sequence[SearchSpec]) -> tuple[Floats | None, Floats]:
        """(B, L) from the class names, zero rows where there are none, and the (B,) trust in them, 0..1."""
        trust = np.zeros(len(specs), np.float32)
        if self._vote.text_share <= 0 or all(spec.label_prior is None for spec in specs):
            return None, trust
        said = np.zeros((len(specs), self._classes), np.float32)
        for i, spec in enumerate(specs):
            if spec.label_prior is not None:
                trust[i] = spec.label_prior.sum()
                said[i] = spec.label_prior / np.maximum(trust[i], np.finfo(np.float32).tiny)
        return said, trust
