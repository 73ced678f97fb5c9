"""Top k of the candidates, and their ranks: by falling score, ties by ascending row.

Rows are ordered by image id, so ties break by image id.  B queries, C candidates a query, M members; a row of -1 is no
candidate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import brief, jit

__all__ = ["ranks_of", "top_places"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Up to this k, insertion into a short list is faster than sorting all candidates.
_MAX_INSERTED = 32


def top_places(scores: Floats, rows: Rows, counts: Rows) -> Rows:
    """The places (columns) of each query's best candidates, best first.

    Args:
        scores: (B, C), finite where there is a candidate.
        rows: (B, C).
        counts: (B,) how many to list for each query.

    Returns:
        (B, K) with K the largest of ``counts``, at most C; -1 where a query lists fewer.
    """
    width = min(int(counts.max()), rows.shape[1]) if len(counts) else 0
    places = np.full((len(rows), width), -1, np.int64)
    _top_places(scores, rows, counts, places)
    return places


def ranks_of(similarities: Floats, rows: Rows, places: Rows | None = None) -> Rows:
    """The rank of candidates by each member's similarity alone, from 1.

    Args:
        similarities: (B, M, C).
        rows: (B, C).
        places: (B, K) columns of the candidates to rank, -1 where there is none; None for all.

    Returns:
        (B, K, M) ranks among all C candidates, 0 where there is no candidate.
    """
    if places is None:
        places = np.where(rows >= 0, np.arange(rows.shape[1]), -1)
    ranks = np.zeros((*places.shape, similarities.shape[1]), np.int64)
    _ranks_of(similarities, rows, places, ranks)
    return ranks


@jit
def _before(scores: Floats, rows: Rows, one: int, other: int) -> bool:
    if scores[one] == scores[other]:
        return bool(rows[one] < rows[other])
    return bool(scores[one] > scores[other])


@jit
def _sorted(scores: Floats, rows: Rows) -> Rows:
    """The places of all candidates of one query, best first."""
    by_row = np.argsort(rows, kind="mergesort")
    by_row = by_row[np.searchsorted(rows[by_row], 0) :]
    return by_row[np.argsort(-scores[by_row], kind="mergesort")]


@brief
def _top_places(scores: Floats, rows: Rows, counts: Rows, places: Rows) -> None:
    for b in range(rows.shape[0]):
        count = min(counts[b], places.shape[1])
        best = places[b]
        if count > _MAX_INSERTED:
            order = _sorted(scores[b], rows[b])
            count = min(count, len(order))
            best[:count] = order[:count]
        elif count > 0:
            kept = 0
            for c in range(rows.shape[1]):
                if rows[b, c] < 0:
                    continue
                if kept < count:
                    kept += 1
                elif not _before(scores[b], rows[b], c, best[kept - 1]):
                    continue
                at = kept - 1
                while at > 0 and _before(scores[b], rows[b], c, best[at - 1]):
                    best[at] = best[at - 1]
                    at -= 1
                best[at] = c


@brief
def _ranks_of(similarities: Floats, rows: Rows, places: Rows, ranks: Rows) -> None:
    for b in range(rows.shape[0]):
        for m in range(similarities.shape[1]):
            scores = similarities[b, m]
            if places.shape[1] > _MAX_INSERTED:
                by_place = np.empty(rows.shape[1], np.int64)
                order = _sorted(scores, rows[b])
                for rank in range(len(order)):
                    by_place[order[rank]] = rank + 1
                for k in range(places.shape[1]):
                    if places[b, k] >= 0:
                        ranks[b, k, m] = by_place[places[b, k]]
            else:
                for k in range(places.shape[1]):
                    if places[b, k] >= 0:
                        rank = 1
                        for c in range(rows.shape[1]):
                            if rows[b, c] >= 0 and _before(scores, rows[b], c, places[b, k]):
                                rank += 1
                        ranks[b, k, m] = rank
