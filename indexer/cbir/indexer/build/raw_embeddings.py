"""What is known of images by the digest of their bytes: facts, and every member's embedding before projection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import EmbeddingCache
from cbir.core.ensemble import EnsembleSpec, member_fingerprint
from cbir.core.images import CROP_VERSION
from cbir.indexer.build.image_facts import ImageFacts

__all__ = ["RawEmbeddings"]


class RawEmbeddings:
    """The cache of one index, as one ensemble sees it.

    Attributes:
        folder: Where it is kept.
        fingerprints: By member: a string that identifies everything its embeddings depend on.
    """

    def __init__(self, folder: Path, ensemble: EnsembleSpec) -> None:
        self.folder = folder
        self.fingerprints: Mapping[str, str] = {m.name: member_fingerprint(m, ensemble.crop) for m in ensemble.members}
        # Facts depend only on the crop and the limits of decoding, so all ensembles share them.
        self._facts = EmbeddingCache(folder, f"facts-{ensemble.crop}-{CROP_VERSION}")
        self._members = {name: EmbeddingCache(folder, print_) for name, print_ in self.fingerprints.items()}

    def known(self, sha256: bytes) -> bool:
        """Whether everything about the image with this digest is there."""
        return sha256 in self._facts and not self.missing(sha256)

    def missing(self, sha256: bytes) -> list[str]:
        """The members whose embedding of the image is not there."""
        return [name for name, cache in self._members.items() if sha256 not in cache]

    def facts(self, sha256: bytes) -> ImageFacts:
        """The facts of an image that is :meth:`known`."""
        return ImageFacts.from_row(sha256, self._facts.get([sha256])[0])

    def holds(self, digests: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """(n,) of which of (n, 32) digests everything is there."""
        found = self._facts.holds(digests)
        for cache in self._members.values():
            found &= cache.holds(digests)
        return found

    def facts_of(self, digests: NDArray[np.uint8]) -> list[ImageFacts]:
        """The facts of the images with these (n, 32) digests, all of which are known."""
        rows = self._facts.get(digests)
        return [ImageFacts.from_row(digest.tobytes(), row) for digest, row in zip(digests, rows, strict=True)]

    def raw(self, member: str, digests: Sequence[bytes] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, D) unit vectors of a member before projection, in the order of the digests, all of which are known."""
        return np.asarray(self._members[member].get(digests), dtype=np.float32)

    def vectors(self, member: str, digests: NDArray[np.uint8]) -> CachedVectors:
        """The same of (N, 32) digests, of which rows are read when they are asked for."""
        return CachedVectors(self._members[member], digests)

    def put(
        self, vectors: Mapping[str, tuple[Sequence[bytes], NDArray[np.float32]]], facts: Sequence[ImageFacts]
    ) -> list[str]:
        """Keep a block; it is on disk when this returns.

        Args:
            vectors: By member: n digests and their (n, D) unit vectors.
            facts: Of images whose vectors of all members are there, or among these.

        Returns:
            The files that were written, relative to the folder.
        """
        files = [
            self._members[member].put(list(digests), rows.astype(np.float16))
            for member, (digests, rows) in vectors.items()
        ]
        # Facts are written last: their presence means that the members' rows are complete.
        files.append(self._facts.put([f.sha256 for f in facts], np.array([f.to_row() for f in facts], np.int64)))
        return [file.relative_to(self.folder).as_posix() for file in files if file]

    def take_in(self, files: Iterable[str]) -> None:
        """Learn of files that another process wrote, as :meth:`put` names them."""
        caches = {cache.folder.name: cache for cache in (*self._members.values(), self._facts)}
        for file in files:
            folder, _, name = file.partition("/")
            if folder in caches:
                caches[folder].take_in(name)

    def compact(self) -> None:
        """Compact what is kept; to be called at the end of a run, while the index's lock is held."""
        for cache in (*self._members.values(), self._facts):
            cache.compact()


class CachedVectors:
    """(N, D) unit vectors of a member before projection, read from the cache row by row or block by block."""

    def __init__(self, cache: EmbeddingCache, digests: NDArray[np.uint8]) -> None:
        self._cache, self._digests = cache, digests
        self.shape = (len(digests), int(cache.get(digests[:1]).shape[1]))

    def __len__(self) -> int:
        return len(self._digests)

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        return np.asarray(self._cache.get(self._digests[rows]), dtype=np.float32)
