"""The protocol of where the vectors of an index live: beside its other files, or in a vector database.

The files of a version name its store; nothing else of an index depends on it.  :class:`LocalStore` is the one whose
vectors stay in the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from cbir.core.artifacts import Gallery, IndexVersion
    from cbir.core.search.kernels.choice import Kernel
    from cbir.core.search.searcher import Searcher

__all__ = ["LocalStore", "VectorStore"]


class VectorStore(Protocol):
    """Keeps the projected vectors of published versions, and searches them.

    Attributes:
        kind: Its name, as the manifest of a version tells it.
    """

    kind: str

    def check(self, members: Sequence[str]) -> None:
        """Refuse what cannot be published, before any image is read.

        Raises:
            CbirError: The store is away, or cannot hold vectors of so many members.
        """
        ...

    def keep(
        self, folder: Path, gallery: Gallery, members: Mapping[str, str], report: Callable[[int, int], None]
    ) -> Mapping[str, Any]:
        """Take over the vectors of a version that is being written; all of them are there when this returns.

        Args:
            folder: With ``members/<name>/embeddings.npy`` for each member; the store may remove these files.
            members: By name, in the order of the ensemble: the kind of vector index, ``exact`` for none.
            report: Called with the number of rows that are kept so far, and of all.

        Returns:
            What the manifest tells of the vectors, plain data; empty where they stay in the folder.
        """
        ...

    def make_live(self, version: IndexVersion) -> None:
        """Called before a version becomes the live one, and once more if that was interrupted."""
        ...

    def retain(self, versions: Iterable[IndexVersion]) -> None:
        """Remove all vectors of this index but those of the given versions."""
        ...

    def open(
        self, version: IndexVersion, device: str = "auto", index: str | None = None, kernel: Kernel = "auto"
    ) -> Searcher:
        """Search a version.

        Args:
            device: ``auto``, ``cpu`` or ``cuda``: where vectors of this process are searched.
            index: ``exact`` for exact search even if there is an approximate index.
            kernel: What exact search on a CPU runs on, where it is this process that searches; ``auto`` measures.

        Raises:
            CbirError: The vectors are not there, are damaged, or are those of another version.
        """
        ...


class LocalStore:
    """Vectors in the files of the version; implements :class:`VectorStore`."""

    kind = "local"

    def check(self, members: Sequence[str]) -> None:
        """See :class:`VectorStore`; files hold any number of members."""

    def keep(
        self, folder: Path, gallery: Gallery, members: Mapping[str, str], report: Callable[[int, int], None]
    ) -> Mapping[str, Any]:
        """See :class:`VectorStore`; the files stay where they are."""
        return {}

    def make_live(self, version: IndexVersion) -> None:
        """See :class:`VectorStore`; replacing CURRENT is all."""
        version.manifest.check_store(self.kind, version.path)

    def retain(self, versions: Iterable[IndexVersion]) -> None:
        """See :class:`VectorStore`; vectors go with the folder of their version."""
        for version in versions:
            version.manifest.check_store(self.kind, version.path)

    def open(
        self, version: IndexVersion, device: str = "auto", index: str | None = None, kernel: Kernel = "auto"
    ) -> Searcher:
        """See :class:`VectorStore`."""
        # Imported here: searching needs torch, which takes seconds, and whoever only publishes may have no use for it.
        from cbir.core.search.retriever import Retriever

        version.manifest.check_store(self.kind, version.path)
        return Retriever.load(version, device, index, kernel)
