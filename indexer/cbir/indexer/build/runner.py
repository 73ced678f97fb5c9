"""The protocol of what embeds images, on this machine or on others.

:class:`cbir.indexer.build.EmbeddingRun` is the local implementation: threads of this process decode, and its models
embed.
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
    """Reads the bytes of a source's images; thread-safe."""

    def read(self, image: SourceImage) -> bytes:
        """The file's bytes.

        Raises:
            ImageError: The file cannot be read.
        """
        ...


class Runner(Protocol):
    """Embeds images with every member of an ensemble, each distinct content once, and keeps the results.

    An image is identified by the SHA-256 digest of its bytes.
    """

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """By member: a string that identifies everything its embeddings depend on."""
        ...

    @property
    def embedded(self) -> AbstractSet[bytes]:
        """Digests of the contents that this run embedded with at least one member."""
        ...

    def known(self, sha256: bytes) -> bool:
        """Whether everything about the image with this digest has been computed and kept."""
        ...

    def facts(self, sha256: bytes) -> ImageFacts:
        """The facts of an image that is :meth:`known`."""
        ...

    def raw(self, member: str, digests: Sequence[bytes]) -> NDArray[np.float32]:
        """(N, D) unit vectors of a member before projection, in the order of the digests, all of which are known."""
        ...

    def run(
        self, images: Sequence[SourceImage], reader: ImageReader
    ) -> tuple[dict[str, ImageFacts], list[SkippedImage]]:
        """Embed what is not known yet.

        Returns:
            The facts of the embedded images by id, and the images that were left out.

        Raises:
            KeyboardInterrupt: The user interrupted; finished work was kept.
        """
        ...

    def compact(self) -> None:
        """Compact what is kept; to be called at the end of a run, while the index's lock is held."""
        ...
