"""The protocol of what ranks a gallery, wherever its vectors are kept.

The server's engine and the evaluation use it and know nothing of files.  :class:`cbir.core.search.Retriever` implements
it with the vectors of one index version in this process's memory or on its GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import Gallery
from cbir.core.vote import Ranking, SearchSpec

__all__ = ["Searcher"]

Floats = NDArray[np.float32]


class Searcher(Protocol):
    """Ranks the images of one gallery.  One caller at a time.

    Attributes:
        gallery: The facts about each image; its row numbers are those of the vectors.
        members: Names of the ensemble's members, in the order of all arrays.
        raw_dims: Length of each member's embedding before projection.
        dims: Length of each member's projected vector.
        weights: (M,) usual weight of each member's vote; they sum to 1.
        index_name: How candidates are found, in words for display.
    """

    gallery: Gallery
    members: tuple[str, ...]
    raw_dims: tuple[int, ...]
    dims: tuple[int, ...]
    weights: Floats
    index_name: str

    def project(self, raw: Mapping[str, Floats]) -> Floats:
        """Project raw embeddings, (B, raw_dim) by member, to (B, sum of dims) unit vectors side by side.

        A member that is left out gets zeros and does not count in the search.

        Raises:
            QueryError: An unknown member, another length, or numbers that are not finite.
        """
        ...

    def vectors_of(self, rows: Sequence[int]) -> Floats:
        """(B, sum of dims): the projected vectors of gallery rows."""
        ...

    def search(self, queries: Floats, specs: Sequence[SearchSpec]) -> list[Ranking]:
        """Rank the gallery for (B, sum of dims) queries, each by its own spec.

        Every hit has the exact fused score and the exact similarity of every member, however candidates were found.

        Raises:
            QueryError: A limit or weight that cannot be met.
        """
        ...
