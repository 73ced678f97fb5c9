"""The protocol of what embeds images, on this machine or on others.

A runner takes a stream of images and gives a stream of blocks.  A block is given once its embeddings are in the cache
of the index (:class:`cbir.indexer.build.RawEmbeddings`), so whoever is killed loses at most what was no block yet.
:class:`cbir.indexer.build.EmbeddingRun` is the local implementation: threads of this process decode, and its models
embed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from cbir.indexer.build.image_facts import ImageFacts, SkippedImage
from cbir.indexer.build.raw_embeddings import RawEmbeddings
from cbir.indexer.sources import SourceImage

__all__ = ["EmbeddedBlock", "ImageReader", "Runner", "gathered"]


class ImageReader(Protocol):
    """Reads the bytes of a source's images; thread-safe, and picklable for runners on other machines."""

    def read(self, image: SourceImage) -> bytes:
        """The file's bytes.

        Raises:
            ImageError: The file cannot be read.
        """
        ...


@dataclass(frozen=True)
class EmbeddedBlock:
    """Images that a runner is done with.

    Attributes:
        images: Those that are in the cache now, each with its facts; the order is that of the stream within a block.
        skipped: Those that were left out.
        embedded: Digests of the contents that were embedded for this block, by at least one member.
        files: Files of the cache that were written for it, relative to its folder.
    """

    images: tuple[tuple[SourceImage, ImageFacts], ...]
    skipped: tuple[SkippedImage, ...]
    embedded: frozenset[bytes]
    files: tuple[str, ...] = ()


class Runner(Protocol):
    """Embeds images with every member of an ensemble.

    An image is identified by the SHA-256 digest of its bytes; what the cache knows of it is not computed again.
    """

    @property
    def embeddings(self) -> RawEmbeddings:
        """The cache, which holds every image of the blocks that were given."""
        ...

    def run(self, images: Iterable[SourceImage], reader: ImageReader, total: int = 0) -> Iterator[EmbeddedBlock]:
        """Embed images, as many at a time as the runner can use.

        Args:
            total: How many there are, for progress reports; 0 if that is not known.

        Raises:
            KeyboardInterrupt: The user interrupted; finished work was kept.
            EnsembleError: A model cannot be loaded.
        """
        ...


def gathered(blocks: Iterable[EmbeddedBlock]) -> tuple[dict[str, ImageFacts], list[SkippedImage], set[bytes]]:
    """All blocks of a run that is small enough to be held at once.

    Returns:
        Facts by image id, what was left out, and the digests of what was embedded.
    """
    facts: dict[str, ImageFacts] = {}
    skipped: list[SkippedImage] = []
    embedded: set[bytes] = set()
    for block in blocks:
        facts.update((image.id, known) for image, known in block.images)
        skipped += block.skipped
        embedded |= block.embedded
    return facts, skipped, embedded
