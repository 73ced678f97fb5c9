"""The kinds of vector index, by name, and the protocol that each implements.

To add a kind, write a module with ``check(argument)``, ``build(vectors, argument, path)`` and ``load(path, vectors,
device)``, and add a line to ``INDEXES``.  N gallery rows of one member, d components, B queries.
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
from cbir.core.vector_index.segmented_vectors import HalfVectors

__all__ = [
    "INDEXES",
    "IndexKind",
    "VectorIndex",
    "build_index",
    "check_index",
    "grows",
    "index_file",
    "is_index_name",
    "load_index",
]


@dataclass(frozen=True)
class IndexKind:
    """One kind of index.

    Attributes:
        module: The module that implements it.
        file: Name of the file that it keeps beside the embeddings, or None.
        pattern: Regular expression of its names in an ensemble file.
    """

    module: str
    file: str | None
    pattern: str


#: Kind (the part of a name before the colon) -> its module.
INDEXES = {
    "exact": IndexKind("cbir.core.vector_index.exact", None, "exact"),
    "faiss": IndexKind("cbir.core.vector_index.faiss", "index.faiss", "faiss:.+"),
    "annoy": IndexKind("cbir.core.vector_index.annoy", "index.ann", r"annoy:[1-9]\d*"),
}


class VectorIndex(Protocol):
    """Proposes the nearest gallery rows by inner product, for one member's vectors."""

    def search(self, queries: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The (B, count) best rows for (B, d) queries, -1 where fewer are found, and their similarities."""
        ...


def index_file(name: str) -> str | None:
    """The name of the file that an index keeps beside the embeddings, or None."""
    kind = INDEXES.get(name.partition(":")[0])
    return kind.file if kind else None


def is_index_name(name: str) -> bool:
    """Whether ``name`` is ``auto`` or has the form of a known kind's names."""
    return name == "auto" or any(re.fullmatch(kind.pattern, name) for kind in INDEXES.values())


def check_index(name: str) -> None:
    """Refuse a name that is unknown or whose package is not installed, before any work is spent.

    Raises:
        ConfigurationError: ``INDEX_UNKNOWN`` or ``INDEX_MISSING``.
    """
    if not is_index_name(name):
        raise _unknown(name)
    if name != "auto":
        _module(name).check(name.partition(":")[2])


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


def build_index(name: str, vectors: HalfVectors, path: Path) -> None:
    """Build the index ``name`` over (N, d) unit vectors and write it to ``path``.

    Raises:
        ConfigurationError: The kind or factory string is unknown, or the package is missing.
    """
    _module(name).build(vectors, name.partition(":")[2], path)


def grows(name: str) -> bool:
    """Whether the file of such an index stays as it is when the gallery changes a little.

    What is gone then stays in it as tombstones, which no search returns, and what is new is added when it is loaded.
    """
    return index_file(name) is None or bool(getattr(_module(name), "GROWS", False))


def load_index(name: str, path: Path, vectors: HalfVectors, device: str) -> VectorIndex:
    """Load the index that :func:`build_index` wrote.

    Args:
        path: Its file; ``exact`` has none and ignores it.
        vectors: (N, d) the member's unit vectors; where they lie in segments, the file is that of the first of these.
        device: ``cpu`` or ``cuda``; kinds that know no GPU ignore it.

    Raises:
        ArtifactError: The file is damaged or belongs to another gallery.
        ConfigurationError: The kind is unknown, or its package is missing.
    """
    return cast(VectorIndex, _module(name).load(path, vectors, device))
