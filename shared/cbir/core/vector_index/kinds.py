"""Vector indexes: propose the nearest gallery rows for one member's query vectors.

An index is one module with ``build(vectors, argument, path)`` and ``load(path, vectors, device)`` and one line here.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from cbir.core.errors import ConfigurationError

__all__ = [
    "INDEXES",
    "IndexKind",
    "VectorIndex",
    "build_index",
    "check_index",
    "index_file",
    "is_index_name",
    "load_index",
    "resolve_index",
]


@dataclass(frozen=True)
class IndexKind:
    """One kind of index: its module, the file it keeps beside the embeddings (if any), and how its names look."""

    module: str
    file: str | None
    pattern: str


#: Index kind -> where it is.
INDEXES = {
    "exact": IndexKind("cbir.core.vector_index.exact", None, "exact"),
    "faiss": IndexKind("cbir.core.vector_index.faiss", "index.faiss", "faiss:.+"),
    "annoy": IndexKind("cbir.core.vector_index.annoy", "index.ann", r"annoy:[1-9]\d*"),
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
    kind = INDEXES.get(name.partition(":")[0])
    return kind.file if kind else None


def is_index_name(name: str) -> bool:
    """Whether a text is ``auto`` or names an index of a known kind."""
    return name == "auto" or any(re.fullmatch(kind.pattern, name) for kind in INDEXES.values())


def check_index(name: str) -> None:
    """Refuse an index name that no builder understands, before any work is spent on it.

    Raises:
        ConfigurationError: ``INDEX_UNKNOWN``, or ``INDEX_MISSING`` where its package is.
    """
    if not is_index_name(name):
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
        return importlib.import_module(INDEXES[kind].module)
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
