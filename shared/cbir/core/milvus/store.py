"""Where the vectors of an index live when that is Milvus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cbir.core.artifacts import Gallery, IndexStore, IndexVersion
from cbir.core.errors import ArtifactError, ConfigurationError
from cbir.core.milvus.collection import Collection, alias_of, is_of
from cbir.core.milvus.connection import MilvusConnection
from cbir.core.milvus.remote_vectors import RemoteVectors
from cbir.core.search import Kernel, LocalStore, Retriever, Searcher, ThresholdSearch, VectorStore

__all__ = ["MilvusStore", "vector_store"]


class MilvusStore:
    """Implements :class:`cbir.core.search.VectorStore` with a collection a version and an alias an index.

    Args:
        index: The INDEX folder.
        uri: As for :class:`MilvusConnection`.
        token: As for :class:`MilvusConnection`.
    """

    kind = "milvus"

    def __init__(self, index: Path, uri: str, token: str = "") -> None:
        self._index, self._to = index, MilvusConnection(uri, token)

    def check(self, members: Sequence[str]) -> None:
        """See :class:`cbir.core.search.VectorStore`; makes a collection of so many vector fields, and drops it."""
        trial = Collection.new("cbir_trial", 0, [(name, 8) for name in members], "FLAT")
        trial.create(self._to)
        self._to.call("drop_collection", trial.name)

    def keep(
        self, folder: Path, gallery: Gallery, members: Mapping[str, str], report: Callable[[int, int], None]
    ) -> Mapping[str, Any]:
        """See :class:`cbir.core.search.VectorStore`."""
        store = IndexStore(self._index)
        self.retain(store.open(name) for name in store.versions())
        files = [folder / "members" / name / "embeddings.npy" for name in members]
        vectors = [np.load(file, mmap_mode="r") for file in files]
        sizes = [(name, int(part.shape[1])) for name, part in zip(members, vectors, strict=True)]
        kind = "FLAT" if set(members.values()) == {"exact"} else "HNSW"
        collection = Collection.new(alias_of(self._index), len(gallery), sizes, kind)
        collection.create(self._to)
        collection.fill(self._to, gallery, vectors, report)
        for file in files:
            file.unlink()
        return collection.to_json()

    def make_live(self, version: IndexVersion) -> None:
        """See :class:`cbir.core.search.VectorStore`; moves the alias, which Milvus does at one stroke."""
        if not version.manifest.store:
            return  # the vectors are in its files, and the alias stays at the last version that has it
        collection = self._collection(version)
        try:
            now = str(self._to.call("describe_alias", collection.alias)["collection_name"])
        except (KeyError, ArtifactError):
            self._to.call("create_alias", collection.name, collection.alias)
            return
        if now != collection.name:
            self._to.call("alter_alias", collection.name, collection.alias)

    def retain(self, versions: Iterable[IndexVersion]) -> None:
        """See :class:`cbir.core.search.VectorStore`; collections that no version of the folder names are dropped."""
        alias = alias_of(self._index)
        kept = {self._collection(version).name for version in versions if version.manifest.store}
        for name in self._to.call("list_collections"):
            if is_of(alias, name) and name not in kept:
                self._to.call("drop_collection", name)

    def open(
        self, version: IndexVersion, device: str = "auto", index: str | None = None, kernel: Kernel = "auto"
    ) -> Searcher:
        """See :class:`cbir.core.search.VectorStore`; the device is Milvus's own, and so is the index."""
        version.manifest.check_store(self.kind, version.path)
        collection = self._collection(version)
        collection.check(self._to, version.gallery)
        vectors = RemoteVectors(self._to, collection)
        names = [name for name, _ in collection.members]
        return Retriever(
            version.gallery, names, vectors, [version.projection(name) for name in names], version.vote,
            [None] * len(names), f"milvus {collection.kind}", "cpu", version.heads(),
            nearest=ThresholdSearch(vectors, vectors),
        )  # fmt: skip

    def _collection(self, version: IndexVersion) -> Collection:
        return Collection.from_json(version.manifest.store, version.path)


def vector_store(index: Path, uri: str | None, token_file: Path | None = None) -> VectorStore:
    """The store of the vectors of the index at ``index``: Milvus at ``uri``, or without one the index's own files.

    Raises:
        ConfigurationError: ``STORE_URI``, ``EXTRA_MISSING`` or ``STORE_TOKEN``.
    """
    if uri is None:
        return LocalStore()
    try:
        token = token_file.read_text(encoding="utf-8").strip() if token_file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{token_file} cannot be read as the token of Milvus: give a text file with user:password or a key",
            reason="STORE_TOKEN",
        ) from error
    return MilvusStore(index, uri, token)
