"""Where vectors live: what ranks a gallery, whatever holds its vectors.

The server's engine and the evaluation know a searcher and no file layout.  :class:`cbir.core.search.Retriever` is the
local one: it holds the vectors of one index version in this process's memory or on its GPU.
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
        gallery: What is known of each image; a row number means the same image here and there.
        members: Names of the ensemble's members, in the order of all arrays.
        raw_dims: Length of each member's embedding before projection.
        dims: Length of each member's projected vector.
        weights: (M,) usual weight of each member's vote; they sum to 1.
        index_name: How candidates are found, for people.
    """

    gallery: Gallery
    members: tuple[str, ...]
    raw_dims: tuple[int, ...]
    dims: tuple[int, ...]
    weights: Floats
    index_name: str

    def project(self, raw: Mapping[str, Floats]) -> Floats:
        """Project raw embeddings, (B, raw_dim) by member, to (B, sum of dims) unit vectors side by side.

        Members that are left out get zeros and so have no say.

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
