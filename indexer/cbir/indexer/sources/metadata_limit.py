"""A bound on what is kept beside an image: every answer carries it, and a message holds only so much."""

from __future__ import annotations

import dataclasses

from cbir.indexer.sources.image import ScanProblem, SourceImage

__all__ = ["MAX_METADATA_BYTES", "MetadataLimit"]

#: Most bytes of the metadata of one image, names included: an answer of 100 hits stays below 2 MB.
MAX_METADATA_BYTES = 16 * 2**10


class MetadataLimit:
    """Leaves the longest columns out of rows that are too long, and counts them."""

    def __init__(self) -> None:
        self._left_out: dict[str, tuple[str, int]] = {}

    def apply(self, image: SourceImage) -> SourceImage:
        """Return the image with as much of its metadata as may be kept."""
        sizes = {name: len(name.encode()) + len(cell.encode()) for name, cell in image.metadata.items()}
        total = sum(sizes.values())
        if total <= MAX_METADATA_BYTES:
            return image
        kept = dict(image.metadata)
        for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
            if total <= MAX_METADATA_BYTES:
                break
            total -= sizes[name]
            del kept[name]
            first, count = self._left_out.get(name, (image.uri, 0))
            self._left_out[name] = first, count + 1
        return dataclasses.replace(image, metadata=kept)

    def problems(self) -> list[ScanProblem]:
        """A line for each column that was left out of a row."""
        told = []
        for name, (first, count) in self._left_out.items():
            others = f" (and those of {count - 1:,} others)" if count > 1 else ""
            why = f"its metadata{others} would be more than {MAX_METADATA_BYTES:,} bytes a row"
            told.append(ScanProblem(first, f"{why}: the column {name[:80]!r} is left out"))
        return told
