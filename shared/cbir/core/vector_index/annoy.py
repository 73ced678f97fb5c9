"""Annoy: forests of random projection trees, mapped from the file, so that several processes share one copy."""

from __future__ import annotations

from pathlib import Path

import annoy
import numpy as np
from numpy.typing import NDArray

from cbir.core.errors import ArtifactError
from cbir.core.vector_index.segmented_vectors import HalfVectors

__all__ = ["AnnoyIndex", "build", "check", "load"]

_SEED = 1


class AnnoyIndex:
    """An Annoy forest.  On unit vectors, the order by angle is that by inner product."""

    def __init__(self, forest: annoy.AnnoyIndex, vectors: HalfVectors) -> None:
        self._forest, self._vectors = forest, vectors

    def search(self, queries: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See :class:`cbir.core.vector_index.VectorIndex`."""
        count = min(count, len(self._vectors))
        rows = np.full((len(queries), count), -1, np.int64)
        scores = np.full((len(queries), count), -np.inf, np.float32)
        for i, query in enumerate(queries):
            # Annoy's default search_k is count * trees; small requests inspect at least 2000 nodes.
            found, distances = self._forest.get_nns_by_vector(
                query, count, search_k=max(count * self._forest.get_n_trees(), 2000), include_distances=True
            )
            rows[i, : len(found)] = found
            # Annoy's angular distance is sqrt(2 - 2·cos).
            scores[i, : len(found)] = 1 - np.asarray(distances, np.float32) ** 2 / 2
        return rows, scores


def check(argument: str) -> None:
    """Every number of trees can be built."""


def build(vectors: HalfVectors, argument: str, path: Path) -> None:
    """Build a forest of ``argument`` trees (50 where it is empty) and write it to ``path``."""
    forest = annoy.AnnoyIndex(vectors.shape[1], "angular")
    forest.set_seed(_SEED)
    forest.on_disk_build(str(path))
    for row in range(len(vectors)):
        forest.add_item(row, vectors[row].astype(np.float32))
    forest.build(int(argument or 50))
    forest.unload()


def load(path: Path, vectors: HalfVectors, device: str) -> AnnoyIndex:
    """See :func:`cbir.core.vector_index.load_index`."""
    forest = annoy.AnnoyIndex(vectors.shape[1], "angular")
    try:
        forest.load(str(path))
    except OSError as error:
        raise ArtifactError(
            f"{path} is no readable Annoy index: run `cbir verify`, then index again", reason="INDEX_CORRUPT"
        ) from error
    if forest.get_n_items() != len(vectors):
        raise ArtifactError(
            f"{path} holds {forest.get_n_items()} vectors for {len(vectors)} images: index again",
            reason="INDEX_CORRUPT",
        )
    return AnnoyIndex(forest, vectors)
