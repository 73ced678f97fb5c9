"""Near duplicates across queries and gallery: figures look better where the answer was all but given away."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cbir.core.near_duplicates import Appearance, close_hashes, confirmed
from cbir.core.retriever import Retriever
from cbir.indexer.answers import Judge
from cbir.indexer.query_set import QuerySet

__all__ = ["NearDuplicate", "find_near_duplicates"]


@dataclass(frozen=True)
class NearDuplicate:
    """A query and the gallery image most like it.

    Attributes:
        query: Place among the queries.
        row: Row of the gallery.
        bits: In which their perceptual hashes differ.
        images: Gallery images within the limit.
    """

    query: int
    row: int
    bits: int
    images: int


def find_near_duplicates(
    retriever: Retriever, appearance: Appearance, queries: QuerySet, judge: Judge
) -> list[NearDuplicate]:
    """The queries with a near duplicate in the gallery, other than their own bytes, in query order."""
    hashes = retriever.gallery.phashes
    found = []
    for query, (own, phash) in enumerate(zip(judge.own, queries.phashes, strict=True)):
        rows, bits = close_hashes(hashes, int(phash))
        foreign = ~np.isin(rows, own)
        rows, bits = rows[foreign], bits[foreign]
        if len(rows):
            seen = appearance.vectors(np.stack([queries.vectors[query], *retriever.stored(rows.tolist())]))
            sure = confirmed(bits, seen[1:] @ seen[0])
            rows, bits = rows[sure], bits[sure]
        if len(rows):
            nearest = int(np.argmin(bits))
            found.append(NearDuplicate(query, int(rows[nearest]), int(bits[nearest]), len(rows)))
    return found
