"""What the indexer asks of the places that images come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from cbir.indexer.sources import ScanProblem, SourceImage

__all__ = ["ImageSources"]


class ImageSources(Protocol):
    """The images to index (see :func:`cbir.indexer.sources.open_sources`)."""

    @property
    def problems(self) -> list[ScanProblem]:
        """What the last scan left out."""
        ...

    def stream(self) -> Iterator[tuple[int, SourceImage]]:
        """All images, with the number of the source that each is from."""
        ...

    def settle(self, image: SourceImage, number: int, other: SourceImage, its_number: int) -> ScanProblem:
        """Why an image is passed over that has the id of another, found before it; raises where it may not be."""
        ...

    def scan(self) -> list[SourceImage]:
        """All images, with distinct ids."""
        ...

    def read_parts(self) -> list[dict[str, Any]]:
        """What the last stream read, to be kept with a version."""
        ...

    def same_as(self, told: object) -> bool:
        """Whether it is known without a scan that nothing has changed since a version kept these parts."""
        ...

    def read(self, image: SourceImage) -> bytes:
        """The bytes of an image; thread-safe."""
        ...
