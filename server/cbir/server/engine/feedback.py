"""Relevance feedback: example images pull the query towards them or push it away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cbir.core.errors import QueryError
from cbir.core.metric import normalise

__all__ = ["NEGATIVE_WEIGHT", "POSITIVE_WEIGHT", "apply_feedback"]

Floats = NDArray[np.float32]

#: What the mean of the positive examples weighs beside the query.
POSITIVE_WEIGHT = 1.0
#: What the mean of the negative examples weighs beside all that pulls: query and positives.
NEGATIVE_WEIGHT = 0.25

# Below this length a direction is rounding noise.
_NOTHING = 1e-4


def apply_feedback(query: Floats | None, positives: Floats, negatives: Floats, dims: Sequence[int]) -> Floats:
    """Move a projected query by its examples.

    In every member's space the query becomes ``unit(query + mean(positives) - 0.25·2·mean(negatives))``: 0.25 of the
    weight of what pulls, which is 2 here, and 1 where either query or positives are missing.  A member that has no say
    in the query (a zero block) has none afterwards either.  Source: Rocchio, "Relevance feedback in information
    retrieval", 1971.  Salton and Buckley, 1990, gave positives and negatives 0.75 and 0.25, for words; the weights here
    were chosen on photos (docs/benchmarks.md, "Relevance feedback").

    Args:
        query: (D,) the members' unit vectors side by side, or None.
        positives: (P, D), P may be 0; their order does not matter, a repeated one counts twice.
        negatives: (N, D), N may be 0.
        dims: Length of each member's block; they add up to D.

    Returns:
        (D,) float32 with unit or zero blocks.

    Raises:
        QueryError: ``EMPTY_QUERY``: nothing is left to look for.
    """
    if query is None and not len(positives):
        raise QueryError(
            "the query is empty: give an image, an image_id, an embedding or positive_ids", reason="EMPTY_QUERY"
        )
    moved = np.zeros(sum(dims), np.float32) if query is None else query.astype(np.float32)
    pull = 0.0 if query is None else 1.0
    if len(positives):
        moved = moved + np.float32(POSITIVE_WEIGHT) * positives.mean(axis=0)
        pull += POSITIVE_WEIGHT
    if len(negatives):
        moved = moved - np.float32(NEGATIVE_WEIGHT * pull) * negatives.mean(axis=0)
    result = np.zeros_like(moved)
    start = 0
    for dim in dims:
        block = slice(start, start + dim)
        start += dim
        if (query is None or query[block].any()) and np.linalg.norm(moved[block]) > _NOTHING:
            result[block] = normalise(moved[None, block])[0]
    if not result.any():
        raise QueryError(
            "the positive and negative examples cancel each other: drop some of them", reason="EMPTY_QUERY"
        )
    return result
