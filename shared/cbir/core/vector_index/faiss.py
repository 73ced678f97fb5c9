"""FAISS indexes, by their factory string; on a GPU where there is one and the kind of index supports it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from cbir.core.errors import ArtifactError, ConfigurationError

__all__ = ["FaissIndex", "build", "check", "extend", "load"]

_BLOCK = 65536
_TRAIN_ROWS = 500_000
#: A length of vectors that product quantisers of any usual number of parts divide.
_DIVISIBLE = 960
#: Share of an index that tombstones and vectors added since its training may make up before it is built anew.
_REBUILD = 0.2


class FaissIndex:
    """A FAISS index.  One caller at a time: on a GPU, FAISS is not safe for concurrent searches."""

    def __init__(self, index: Any) -> None:
        self._index = index

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


def build(vectors: NDArray[np.float16], argument: str, path: Path) -> None:
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


def _add(index: Any, vectors: NDArray[np.float16], rows: NDArray[np.int64]) -> None:
    for start in range(0, len(rows), _BLOCK):
        index.add(_plain(vectors[rows[start : start + _BLOCK]]))


def extend(old: Path, kept: NDArray[np.int64], vectors: NDArray[np.float16], path: Path) -> bool:
    """See :func:`cbir.core.vector_index.extend_index`.

    The index keeps its own numbers; a table beside it tells which row each of them is now, -1 for a tombstone.
    """
    index = faiss.read_index(str(old))
    inner, rows = index, np.arange(index.ntotal)
    if isinstance(index, faiss.IndexIDMap):
        inner, rows = faiss.downcast_index(index.index), faiss.vector_to_array(index.id_map)
    there = np.flatnonzero(kept >= 0)
    place = np.full(max(int(rows.max(initial=-1)), int(kept.max(initial=-1))) + 1, -1, np.int64)
    place[kept[there]] = there
    rows = np.where(rows >= 0, place[np.maximum(rows, 0)], -1)
    new = np.flatnonzero(kept < 0)
    known = int((rows >= 0).sum())
    if known != len(there) or len(rows) - known + len(new) > _REBUILD * len(vectors):
        return False
    _add(inner, vectors, new)
    mapped = faiss.IndexIDMap(faiss.IndexFlat(inner.d, inner.metric_type))
    mapped.own_fields = False
    mapped.index, mapped.ntotal = inner, inner.ntotal
    faiss.copy_array_to_vector(np.concatenate([rows, new]).astype(np.int64), mapped.id_map)
    faiss.write_index(mapped, str(path))
    return True


def load(path: Path, vectors: NDArray[np.float16], device: str) -> FaissIndex:
    """See :func:`cbir.core.vector_index.load_index`."""
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ArtifactError(
            f"{path} is no readable FAISS index: run `cbir verify`, then index again", reason="INDEX_CORRUPT"
        ) from error
    held = index.ntotal
    if isinstance(index, faiss.IndexIDMap):
        rows = faiss.vector_to_array(index.id_map)
        held = int((rows >= 0).sum()) if rows.max(initial=-1) < len(vectors) else -1
    if held != len(vectors):
        raise ArtifactError(
            f"{path} holds {held} vectors for {len(vectors)} images: index again", reason="INDEX_CORRUPT"
        )
    if device == "cuda" and faiss.get_num_gpus() > 0:
        # Graph indexes do not exist on the GPU and raise here; they are fast on the CPU.
        with contextlib.suppress(RuntimeError):
            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    return FaissIndex(index)
