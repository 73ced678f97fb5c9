"""Near duplicates across queries and gallery: figures look better where the answer was all but given away."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cbir.core.gallery import Gallery
from cbir.core.perceptual_hash import distances
from cbir.indexer.answers import Judge
from cbir.indexer.query_set import QuerySet

__all__ = ["NEAR_DUPLICATE_BITS", "NearDuplicate", "find_near_duplicates"]

#: Bits of the perceptual hash in which near duplicates differ at most.
NEAR_DUPLICATE_BITS = 4


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


def find_near_duplicates(gallery: Gallery, queries: QuerySet, judge: Judge) -> list[NearDuplicate]:
    """The queries with a near duplicate in the gallery, other than their own bytes, in query order."""
    hashes = gallery.phashes
    found = []
    for query, (own, phash) in enumerate(zip(judge.own, queries.phashes, strict=True)):
        bits = distances(hashes, int(phash))
        near = np.flatnonzero(bits <= NEAR_DUPLICATE_BITS)
        near = near[~np.isin(near, own)]
        if len(near):
            nearest = int(near[np.argmin(bits[near])])
            found.append(NearDuplicate(query, nearest, int(bits[nearest]), len(near)))
    return found
