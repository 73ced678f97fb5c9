"""Near duplicates across queries and gallery: figures look better where the answer was all but given away."""

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
    gallery: Gallery, appearance: Appearance, queries: QuerySet, judge: Judge
) -> list[NearDuplicate]:
    """The queries with a near duplicate in the gallery, other than their own bytes, in query order."""
    hashes = gallery.phashes
    found = []
    for query, (own, phash) in enumerate(zip(judge.own, queries.phashes, strict=True)):
        rows, bits = close_hashes(hashes, int(phash))
        foreign = ~np.isin(rows, own)
        rows, bits = rows[foreign], bits[foreign]
        if len(rows):
            # What the index searches by may be an average, also of a query that is an image of the gallery.
            known = appearance.of_rows(np.array(own[:1])) if own else appearance.vectors(queries.vectors[query][None])
            sure = confirmed(bits, appearance.of_rows(rows) @ known[0])
            rows, bits = rows[sure], bits[sure]
        if len(rows):
            nearest = int(np.argmin(bits))
            found.append(NearDuplicate(query, int(rows[nearest]), int(bits[nearest]), len(rows)))
    return found
