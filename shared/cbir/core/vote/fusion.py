"""Fusion: the members' similarities become one score for each candidate.  Pure functions of arrays.

B queries, C candidates a query, M members.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import brief

__all__ = [
    "RANK_OFFSET",
    "Fusion",
    "fused_scores",
    "normalised_weights",
    "rank_contributions",
    "vote_contributions",
    "weighted_queries",
]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

#: The constant of reciprocal rank fusion (Cormack, Clarke, Buettcher, "Reciprocal Rank Fusion", SIGIR 2009).
RANK_OFFSET = 60


class Fusion(StrEnum):
    """How the members' similarities are merged: by weighted sum, or by the ranks that they give."""

    WEIGHTED_VOTE = "weighted-vote"
    RECIPROCAL_RANK = "reciprocal-rank"


def normalised_weights(weights: Floats) -> Floats:
    """Scale (..., M) non-negative weights to sum 1, so that fused cosines stay within -1..1; zeros stay zeros."""
    total = weights.sum(axis=-1, keepdims=True)
    return np.asarray(weights / np.where(total > 0, total, 1), dtype=np.float32)


def fused_scores(similarities: Floats, weights: Floats) -> Floats:
    """(B, C) weighted sums over members of (B, M, C) cosines, by (B, M) weights."""
    result = np.empty((similarities.shape[0], similarities.shape[2]), np.float32)
    _fuse(similarities, weights, result)
    return result


@brief
def _fuse(similarities: Floats, weights: Floats, result: Floats) -> None:
    for b in range(similarities.shape[0]):
        for c in range(similarities.shape[2]):
            result[b, c] = similarities[b, 0, c] * weights[b, 0]
        for m in range(1, similarities.shape[1]):
            for c in range(similarities.shape[2]):
                result[b, c] += similarities[b, m, c] * weights[b, m]


def weighted_queries(queries: Floats, weights: Floats, members: Ints) -> Floats:
    """(B, D) queries, each component multiplied by the weight (B, M) of the member (D,) that it belongs to."""
    result = np.empty(queries.shape, np.float32)
    _weigh(queries, weights, members, result)
    return result


@brief
def _weigh(queries: Floats, weights: Floats, members: Ints, result: Floats) -> None:
    for b in range(queries.shape[0]):
        for d in range(queries.shape[1]):
            result[b, d] = queries[b, d] * weights[b, members[d]]


def vote_contributions(similarities: Floats, weights: Floats) -> Floats:
    """What each member contributes to the weighted sum.

    Args:
        similarities: (..., C, M) cosines.
        weights: (..., M) weights that sum to 1.

    Returns:
        (..., C, M); the sum over M is the fused score.
    """
    return np.asarray(similarities * weights[..., None, :], dtype=np.float32)


def rank_contributions(ranks: Ints, weights: Floats) -> Floats:
    """What each member contributes to reciprocal rank fusion, scaled so that rank 1 by all members scores 1.

    Args:
        ranks: (..., C, M) of the candidates by each member, from 1.
        weights: (..., M) or (..., 1, M), broadcast with the ranks; they sum to 1.

    Returns:
        (..., C, M); the sum over M is the fused score.
    """
    return np.asarray(weights * (RANK_OFFSET + 1) / (RANK_OFFSET + ranks), dtype=np.float32)
