"""The ensemble that an index was made with, and the store of its vectors, which it keeps until others are named."""

from __future__ import annotations

from pathlib import Path

from cbir.core.artifacts import IndexStore
from cbir.core.ensemble import EnsembleSpec
from cbir.core.errors import ArtifactError

__all__ = ["ensemble_of_index", "store_of_index"]


def ensemble_of_index(out: Path) -> EnsembleSpec | None:
    """The ensemble of the index at ``out``; None where there is no index.

    Raises:
        ArtifactError: The live version is damaged, so that nothing tells its ensemble.
    """
    store = IndexStore(out)
    if not store.has_current():
        return None
    try:
        return store.open().manifest.ensemble
    except ArtifactError as error:
        raise ArtifactError(
            f"{error}; or name the ensemble (--ensemble), and the index is built anew", reason=error.reason
        ) from error


def store_of_index(out: Path) -> str | None:
    """The kind of store that keeps the vectors of the index at ``out``; None where nothing tells."""
    store = IndexStore(out)
    try:
        return str(store.open().manifest.store.get("kind", "local")) if store.has_current() else None
    except ArtifactError:
        return None
