"""Rescoring: exact float32 scores of the rows that were listed by estimates.

B queries, W rescored rows a query, M members, D components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cbir.core.search.candidates import Candidates
from cbir.core.search.early_termination_bound import bound_the_rest, nth_best
from cbir.core.search.estimates import EstimatedRows
from cbir.core.search.matrices.gallery_matrix import GalleryMatrix
from cbir.core.vote import fused_scores

if TYPE_CHECKING:
    from cbir.core.search.product_quantisation_scan import QuantisedScan

__all__ = ["Rescored", "add_poorly_coded_rows", "rescore"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Rescored:
    """The first rows of a list of estimates with their exact scores, and what these tell about all other rows.

    Attributes:
        rows: (B, W), -1 where a row is excluded or the query has fewer.
        similarities: (B, M, W) cosines.
        fused: (B, W) fused scores, -inf where the row is -1.
        needed: (B,) how many rows of the list must be rescored; more than it holds where the list is too short.
        score_bound: (B,) as in :class:`Candidates`.
        estimate_bound: (B,) as in :class:`Candidates`.
    """

    rows: Rows
    similarities: Floats
    fused: Floats
    needed: Rows
    score_bound: Floats
    estimate_bound: Floats


def rescore(
    matrix: GalleryMatrix,
    listed: EstimatedRows,
    counts: Rows,
    known: Floats | None,
    queries: Floats,
    weights: Floats,
    hits: Rows,
    excluded: Rows,
) -> Rescored:
    """Score the first rows of a list exactly.

    Args:
        counts: (B,) how many rows of each query's list to score.
        known: (B, M, c) cosines of the first c rows where an earlier round computed them.
        queries: (B, D).
        weights: (B, M).
        hits: (B,) how many of the best rows must be certain.
        excluded: (B, X) rows that may not be hits, filled up with -1.
    """
    width = min(int(counts.max()), listed.rows.shape[1])
    rows = listed.rows[:, :width].copy()
    if known is None:
        similarities = matrix.similarities(rows, queries)
    else:
        fresh = matrix.similarities(rows[:, known.shape[2] :], queries)
        similarities = np.concatenate([known, fresh], axis=2)
    fused = fused_scores(similarities, weights)
    bounds = bound_the_rest(fused, rows, listed.estimates, listed.unlisted, counts, hits, excluded, listed.errors)
    return Rescored(rows, similarities, fused, *bounds)


def add_poorly_coded_rows(
    matrix: GalleryMatrix,
    scan: QuantisedScan,
    usual_weights: Floats,
    found: Candidates,
    queries: Floats,
    weights: Floats,
    hits: Rows,
    excluded: Rows,
    allowed: NDArray[np.bool_] | None,
) -> Candidates:
    """Add those of the rows with the largest quantisation errors that may be hits.

    The bound on the rows that were not rescored is measured on rows with ordinary errors and does not hold for these.

    Args:
        usual_weights: (M,) the weights for which ``scan.worst_errors`` were computed.
        hits: (B,) how many of the best rows must be certain.
        excluded: (B, X) rows that may not be hits, filled up with -1.
        allowed: (N,) rows that may be hits, or None for all.
    """
    if not len(scan.worst_rows):
        return found
    fused = fused_scores(found.similarities, weights)
    fused[found.rows < 0] = -np.inf
    last_hit = nth_best(fused, hits)
    # worst_errors holds for the usual weights; others raise it by at most the largest ratio of a weight to its usual.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(weights / usual_weights, nan=0.0, posinf=np.inf).max(axis=1)
        # worst_errors falls, so the first decides whether any matters.
        if not (scan.worst_errors[0] * ratio >= last_hit - found.estimate_bound).any():
            return found
        matters = scan.worst_errors * ratio[:, None] >= (last_hit - found.estimate_bound)[:, None]
    most = int(np.count_nonzero(matters, axis=1).max())
    rows = np.where(matters[:, :most], scan.worst_rows[:most], -1)
    if allowed is not None:
        rows[~allowed[rows]] = -1
    rows[(rows[:, :, None] == excluded[:, None]).any(axis=2)] = -1
    similarities = matrix.similarities(rows, queries)
    scores = fused_scores(similarities, weights)
    rows[scores < last_hit[:, None]] = -1
    columns = np.flatnonzero((rows >= 0).any(axis=0))
    if not len(columns):
        return found
    rows, similarities = rows[:, columns], similarities[:, :, columns]
    rows[(rows[:, :, None] == found.rows[:, None]).any(axis=2)] = -1
    return Candidates(
        np.concatenate([found.rows, rows], axis=1), np.concatenate([found.similarities, similarities], axis=2),
        found.score_bound, found.estimate_bound,
    )  # fmt: skip
