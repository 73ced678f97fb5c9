"""Near duplicates between queries and gallery, which make a search look better than it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cbir.core.artifacts import Gallery
from cbir.core.search import Appearance, close_hashes, confirmed
from cbir.indexer.evaluate.answers import Judge
from cbir.indexer.evaluate.query_set import QuerySet

__all__ = ["NearDuplicate", "find_near_duplicates"]


@dataclass(frozen=True)
class NearDuplicate:
    """A query and the gallery image most similar to it.

    Attributes:
        query: Position among the queries.
        row: Gallery row.
        bits: Number of bits in which their perceptual hashes differ.
        images: Number of near duplicates in the gallery.
    """

    query: int
    row: int
    bits: int
    images: int


def find_near_duplicates(
    gallery: Gallery, appearance: Appearance, queries: QuerySet, judge: Judge
) -> list[NearDuplicate]:
    """The queries that have a near duplicate in the gallery (other than the same bytes), in query order."""
    hashes = gallery.phashes
    found = []
    for query, (own, phash) in enumerate(zip(judge.own, queries.phashes, strict=True)):
        rows, bits = close_hashes(hashes, int(phash))
        foreign = ~np.isin(rows, own)
        rows, bits = rows[foreign], bits[foreign]
        if len(rows):
            # The index may search with averaged vectors, so the vectors of the images themselves are compared, also of
            # a query that is an image of the gallery.
            known = appearance.of_rows(np.array(own[:1])) if own else appearance.vectors(queries.vectors[query][None])
            sure = confirmed(bits, appearance.of_rows(rows) @ known[0])
            rows, bits = rows[sure], bits[sure]
        if len(rows):
            nearest = int(np.argmin(bits))
            found.append(NearDuplicate(query, int(rows[nearest]), int(bits[nearest]), len(rows)))
    return found
