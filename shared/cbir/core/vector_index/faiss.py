"""FAISS indexes, by their factory string; on a GPU where there is one and the kind of index supports it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from cbir.core.errors import ArtifactError, ConfigurationError
from cbir.core.vector_index.segmented_vectors import HalfVectors, SegmentedVectors

__all__ = ["GROWS", "FaissIndex", "build", "check", "load"]

_BLOCK = 65536
_TRAIN_ROWS = 500_000
#: A length of vectors that product quantisers of any usual number of parts divide.
_DIVISIBLE = 960
#: See :func:`cbir.core.vector_index.grows`.
GROWS = True


class FaissIndex:
    """A FAISS index.  One caller at a time: on a GPU, FAISS is not safe for concurrent searches."""

    def __init__(self, index: Any, owner: Any = None) -> None:
        # FAISS does not keep what is inside an index of Python's.
        self._index, self._owner = index, owner

    def search(self, queries: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See :class:`cbir.core.vector_index.VectorIndex`."""
        count = min(count, self._index.ntotal)
        # Once any library has imported faiss.contrib.torch_utils, search() takes tensors and no parameters; the
        # original is then called search_numpy().
        search = getattr(self._index, "search_numpy", self._index.search)
        scores, rows = search(np.ascontiguousarray(queries), count, params=self._effort(count))
        return np.asarray(rows, dtype=np.int64), np.asarray(scores, dtype=np.float32)

    def _effort(self, count: int) -> Any:
        """Search parameters for ``count`` rows, given to the call so that the index itself is not changed."""
        inner = faiss.downcast_index(self._index) if not hasattr(self._index, "getDevice") else self._index
        if isinstance(inner, faiss.IndexIDMap):
            inner = faiss.downcast_index(inner.index)
        if isinstance(inner, faiss.IndexHNSW):
            return faiss.SearchParametersHNSW(efSearch=max(64, 2 * count))
        if isinstance(inner, faiss.IndexIVF):
            return faiss.SearchParametersIVF(nprobe=min(inner.nlist, max(16, inner.nlist // 16)))
        return None


def check(argument: str) -> None:
    """Refuse a factory string that FAISS cannot read.

    Raises:
        ConfigurationError: ``INDEX_UNKNOWN``.
    """
    _made(argument, _DIVISIBLE)


def _made(argument: str, width: int) -> Any:
    try:
        return faiss.index_factory(width, argument or "Flat", faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigurationError(
            f"FAISS does not know the factory string {argument!r}: see the FAISS wiki on the index factory",
            reason="INDEX_UNKNOWN",
        ) from error


def build(vectors: HalfVectors, argument: str, path: Path) -> None:
    """Train and fill ``faiss.index_factory(d, argument)`` for inner products, and write it to ``path``."""
    index = _made(argument, vectors.shape[1])
    if not index.is_trained:
        step = max(1, len(vectors) // _TRAIN_ROWS)
        try:
            index.train(_plain(vectors[::step]))
        except RuntimeError as error:
            raise ConfigurationError(
                f"the FAISS index {argument!r} cannot be trained on {len(vectors):,} images: use fewer lists, or "
                'index = "exact"',
                reason="INDEX_UNTRAINABLE",
            ) from error
    _add(index, vectors, np.arange(len(vectors)))
    faiss.write_index(index, str(path))


def _plain(vectors: NDArray[np.float16]) -> NDArray[np.float32]:
    """As FAISS takes them: once any library has imported faiss.contrib.torch_utils, it refuses mapped arrays."""
    return np.ascontiguousarray(vectors, np.float32)


def _add(index: Any, vectors: HalfVectors, rows: NDArray[np.int64]) -> None:
    for start in range(0, len(rows), _BLOCK):
        index.add(_plain(vectors[rows[start : start + _BLOCK]]))


def load(path: Path, vectors: HalfVectors, device: str) -> FaissIndex:
    """See :func:`cbir.core.vector_index.load_index`."""
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ArtifactError(
            f"{path} is no readable FAISS index: run `cbir verify`, then index again", reason="INDEX_CORRUPT"
        ) from error
    read, inner, numbers = index, index, None
    if isinstance(index, faiss.IndexIDMap):
        # As earlier releases wrote the index of a gallery that had changed; -1 is a tombstone.
        inner, numbers = faiss.downcast_index(index.index), faiss.vector_to_array(index.id_map)
    covered = len(vectors.segments[0]) if isinstance(vectors, SegmentedVectors) else len(vectors)
    held = index.ntotal
    if numbers is not None:
        held = int((numbers >= 0).sum()) if numbers.max(initial=-1) < covered else -1
    if held != covered:
        raise ArtifactError(f"{path} holds {held} vectors for {covered} images: index again", reason="INDEX_CORRUPT")
    if isinstance(vectors, SegmentedVectors):
        index = _grown(inner, numbers, vectors)
    if device == "cuda" and faiss.get_num_gpus() > 0:
        # Graph indexes do not exist on the GPU and raise here; they are fast on the CPU.
        with contextlib.suppress(RuntimeError):
            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    return FaissIndex(index, read)


def _grown(inner: Any, numbers: NDArray[np.int64] | None, vectors: SegmentedVectors) -> Any:
    """An index of the first segment's vectors as one of all rows.

    The index keeps its own numbers; a table beside it tells which row each of them is now, -1 for a tombstone.

    Args:
        numbers: The place in the first segment of what the index holds, -1 for tombstones; None: as they lie there.
    """
    covered = len(vectors.segments[0])
    old = vectors.places < covered
    row_at = np.full(covered, -1, np.int64)
    row_at[vectors.places[old]] = np.flatnonzero(old)
    rows = row_at if numbers is None else np.where(numbers >= 0, row_at[np.maximum(numbers, 0)], -1)
    new = np.flatnonzero(~old)
    _add(inner, vectors, new)
    mapped = faiss.IndexIDMap(faiss.IndexFlat(inner.d, inner.metric_type))
    mapped.own_fields = False
    mapped.index, mapped.ntotal = inner, inner.ntotal
    faiss.copy_array_to_vector(np.concatenate([rows, new]).astype(np.int64), mapped.id_map)
    return mapped
