"""Vector indexes: propose the nearest gallery rows for one member's query vectors.

An index is one module with ``build(vectors, argument, path)`` and ``load(path, vectors, device)`` and one line here.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from cbir.core.errors import ConfigurationError

__all__ = ["INDEXES", "VectorIndex", "build_index", "check_index", "index_file", "load_index", "resolve_index"]

#: Index kind -> module.
INDEXES = {
    "exact": "cbir.core.vector_index.exact",
    "faiss": "cbir.core.vector_index.faiss",
    "annoy": "cbir.core.vector_index.annoy",
}

#: Galleries up to this many images are searched exactly by ``auto``.
AUTO_EXACT = 2_000_000


class VectorIndex(Protocol):
    """Nearest rows by inner product."""

    def search(self, queries: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The ``count`` best rows of each of (B, d) queries: rows (B, count), -1 where none, and similarities."""
        ...


def resolve_index(name: str, images: int) -> str:
    """Turn ``auto`` into a concrete index for a gallery of this size."""
    if name != "auto":
        return name
    if images <= AUTO_EXACT:
        return "exact"
    return f"faiss:IVF{int(4 * images**0.5)},SQfp16"


def index_file(name: str) -> str | None:
    """The file an index keeps beside the embeddings, or None."""
    return {"faiss": "index.faiss", "annoy": "index.ann"}.get(name.partition(":")[0])


def check_index(name: str) -> None:
    """Refuse an index name that no builder understands, before any work is spent on it.

    Raises:
        ConfigurationError: ``INDEX_UNKNOWN``, or ``INDEX_MISSING`` where its package is.
    """
    if not re.fullmatch(r"auto|exact|faiss:.+|annoy:[1-9]\d*", name):
        raise _unknown(name)
    if name != "auto":
        _module(name)


def _unknown(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"there is no index {name!r}: write auto, exact, faiss:<factory string> or annoy:<trees>",
        reason="INDEX_UNKNOWN",
    )


def _module(name: str) -> ModuleType:
    kind = name.partition(":")[0]
    if kind not in INDEXES:
        raise _unknown(name)
    try:
        return importlib.import_module(INDEXES[kind])
    except ModuleNotFoundError as error:
        extra = "annoy" if kind == "annoy" else "indexer"
        raise ConfigurationError(
            f"the index {name!r} needs the package {error.name}: pip install 'ensemble-cbir[{extra}]'",
            reason="INDEX_MISSING",
        ) from error


def build_index(name: str, vectors: NDArray[np.float16], path: Path) -> None:
    """Build the index ``name`` over (N, d) unit vectors and write it to ``path``.

    Raises:
        ConfigurationError: Unknown kind or factory string, or the package is missing.
    """
    _module(name).build(vectors, name.partition(":")[2], path)


def load_index(name: str, path: Path, vectors: NDArray[np.float16], device: str) -> VectorIndex:
    """Load what :func:`build_index` wrote; ``exact`` needs no file."""
    return cast(VectorIndex, _module(name).load(path, vectors, device))
