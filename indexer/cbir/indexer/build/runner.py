"""Where embedding runs: what turns images into embeddings by digest, whatever machines do the work.

:class:`cbir.indexer.build.EmbeddingRun` is the local one: threads of this process decode, its models embed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cbir.indexer.build.image_facts import ImageFacts, SkippedImage
from cbir.indexer.sources import SourceImage

__all__ = ["ImageReader", "Runner"]


class ImageReader(Protocol):
    """Gives the bytes of a source's images; safe for concurrent calls."""

    def read(self, image: SourceImage) -> bytes:
        """The file's bytes.

        Raises:
            ImageError: They cannot be read.
        """
        ...


class Runner(Protocol):
    """Embeds images with every member of an ensemble, each distinct content once, and keeps what it computed.

    An image is known by the SHA-256 digest of its bytes.
    """

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """By member: what its embeddings depend on, as one string."""
        ...

    @property
    def embedded(self) -> AbstractSet[bytes]:
        """Digests of the contents that this run embedded with at least one member."""
        ...

    def known(self, sha256: bytes) -> bool:
        """Whether everything about these bytes has been computed and kept."""
        ...

    def facts(self, sha256: bytes) -> ImageFacts:
        """The facts of bytes that are :meth:`known`."""
        ...

    def raw(self, member: str, digests: Sequence[bytes]) -> NDArray[np.float32]:
        """(N, D) unit vectors of a member before projection, in the order of the digests, all of which are known."""
        ...

    def run(
        self, images: Sequence[SourceImage], reader: ImageReader
    ) -> tuple[dict[str, ImageFacts], list[SkippedImage]]:
        """Embed what is not known yet.

        Returns:
            The facts of the good images by id, and the ones that were left out.

        Raises:
            KeyboardInterrupt: After what is finished was kept.
        """
        ...

    def compact(self) -> None:
        """Tidy what is kept; for the end of a run that holds the index's lock."""
        ...
