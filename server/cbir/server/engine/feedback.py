"""Relevance feedback: the query moves towards positive example images and away from negative ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cbir.core.errors import QueryError
from cbir.core.metric import normalise

__all__ = ["NEGATIVE_WEIGHT", "POSITIVE_WEIGHT", "apply_feedback"]

Floats = NDArray[np.float32]

#: Weight of the mean of the positive examples; the query has weight 1.
POSITIVE_WEIGHT = 1.0
#: Weight of the mean of the negative examples, relative to the total weight of query and positive examples.
NEGATIVE_WEIGHT = 0.25

# A vector shorter than this is 0 but for rounding, and its direction is noise.
_NOTHING = 1e-4


def apply_feedback(query: Floats | None, positives: Floats, negatives: Floats, dims: Sequence[int]) -> Floats:
    """Move a projected query by its examples.

    In every member's space the query becomes ``unit(query + mean(positives) - w·mean(negatives))``, where w is 0.25
    times the total weight of query and positives: 0.5 with both, 0.25 with one of them.  A member that the query has no
    vector for (a zero block) has none afterwards either.  Source: Rocchio, "Relevance feedback in information
    retrieval", 1971.  Salton and Buckley, 1990, weighted positives 0.75 and negatives 0.25 for text documents; the
    weights here were chosen on photos (docs/benchmarks.md, "Relevance feedback").

    Args:
        query: (D,) the members' unit vectors, concatenated; None where there is only feedback.
        positives: (P, D), P may be 0; an example that occurs twice counts twice.
        negatives: (N, D), N may be 0.
        dims: Length of each member's block; their sum is D.

    Returns:
        (D,) float32; every block is a unit vector or zero.

    Raises:
        QueryError: ``EMPTY_QUERY``: all blocks have become zero.
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
