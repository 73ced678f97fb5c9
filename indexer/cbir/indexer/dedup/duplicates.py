"""The near duplicates of an index: which images show the same picture, and which of them to keep."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import GalleryImage, IndexVersion
from cbir.core.errors import CbirError
from cbir.core.files import archive_members, read_uri, split_uri
from cbir.core.images import DecodeLimits, Symmetry, decode_image
from cbir.core.search import BITS, Appearance, Searcher, SmallPictures, group_near_duplicates
from cbir.indexer.dedup.turned_copies import TurnedCopies

__all__ = ["DedupReport", "Duplicate", "ImageGroup", "StoredFile", "find_duplicates"]


@dataclass(frozen=True)
class StoredFile:
    """An image of the gallery and the size of its file.

    Attributes:
        bytes: Present size of the file in bytes; None if the file is gone.
    """

    image: GalleryImage
    bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """What ``cbir dedup --json`` prints about an image."""
        image = self.image
        return {
            "id": image.id,
            "uri": image.uri,
            "label": image.label,
            "width": image.width,
            "height": image.height,
            "bytes": self.bytes,
        }


@dataclass(frozen=True)
class Duplicate:
    """A near duplicate of the image that is kept.

    Attributes:
        bits: In how many of 64 bits its perceptual hash differs from that of the kept image.
        similarity: Similarity of the two images under the ensemble, -1..1; of a turned copy: of their pixels.
        same_bytes: Whether the two files have the same content.
        symmetry: What was done to the kept picture; None: it was neither turned nor mirrored.
    """

    file: StoredFile
    bits: int
    similarity: float
    same_bytes: bool
    symmetry: Symmetry | None = None

    def to_json(self) -> dict[str, Any]:
        """One element of ``extras`` in the document that ``cbir dedup --json`` prints."""
        alike = {"bits": self.bits, "similarity": round(self.similarity, 4), "same_bytes": self.same_bytes}
        return {**self.file.to_json(), **alike, "symmetry": None if self.symmetry is None else str(self.symmetry)}


@dataclass(frozen=True)
class ImageGroup:
    """Images that show the same picture: the one to keep, and its near duplicates, the most similar first."""

    keep: StoredFile
    extras: tuple[Duplicate, ...]


@dataclass(frozen=True)
class DedupReport:
    """All groups of one index version."""

    index: str
    version: str
    images: int
    bits: int
    groups: tuple[ImageGroup, ...]
    symmetries: bool = False

    @property
    def extras(self) -> int:
        """Number of images that are near duplicates of a kept one."""
        return sum(len(group.extras) for group in self.groups)

    @property
    def extra_bytes(self) -> int:
        """Total size of their files in bytes; files that are gone count as 0."""
        return sum(extra.file.bytes or 0 for group in self.groups for extra in group.extras)

    def to_json(self) -> dict[str, Any]:
        """The document that ``cbir dedup --json`` prints."""
        return {
            "index": self.index,
            "version": self.version,
            "images": self.images,
            "bits": self.bits,
            "symmetries": self.symmetries,
            "groups": [
                {"keep": group.keep.to_json(), "extras": [extra.to_json() for extra in group.extras]}
                for group in self.groups
            ],
            "extras": self.extras,
            "extra_bytes": self.extra_bytes,
        }


def find_duplicates(
    index: str,
    version: IndexVersion,
    bits: int = BITS,
    searcher: Searcher | None = None,
    symmetries: bool = False,
) -> DedupReport:
    """Group the near duplicates of an index version and choose which image of each group to keep.

    That is the image whose content (without uniform borders) has the most pixels, so that a photo is preferred to a
    screenshot of it; among equals the one with the larger file, then the first in the gallery.  Where files hold the
    very same pixels, the smallest of them is kept: the others are what it was saved as again, such as a PNG of a JPEG.
    An image whose file is gone is kept only if all files of its group are gone.

    Args:
        index: Name of the index, for the report.
        bits: Near duplicates differ in at most this many of the 64 bits of their perceptual hashes.
        searcher: Knows the vectors of a version that keeps them elsewhere than in its files.
        symmetries: Whether to find copies that were turned or mirrored too; images whose hashes allow it are read.

    Raises:
        ArtifactError: A file of the version is damaged.
    """
    gallery = version.gallery
    appearance = Appearance.of(version, searcher)
    files: dict[int, StoredFile] = {}

    def file(row: int) -> StoredFile:
        if row not in files:
            image = gallery[row]
            files[row] = StoredFile(image, _file_bytes(image.uri))
        return files[row]

    def preference(row: int) -> tuple[bool, int, int, int]:
        found = file(row)
        crop = found.image.crop
        return found.bytes is None, -crop.width * crop.height, -(found.bytes or 0), row

    pictures = SmallPictures(gallery)

    def likeness(row: int, others: NDArray[np.int64]) -> NDArray[np.float32]:
        return pictures.likeness(pictures.of_row(row), others)

    kept: dict[int, dict[int, Duplicate]] = {}
    for group in group_near_duplicates(gallery.phashes, gallery.sha256, appearance.of_rows, preference, bits, likeness):
        keep = file(group.keep)
        kept[group.keep] = {
            row: Duplicate(file(row), bits_off, similarity, file(row).image.sha256 == keep.image.sha256)
            for row, bits_off, similarity in zip(group.extras, group.distances, group.similarities, strict=True)
        }
    if symmetries:
        kept = _with_turned(kept, TurnedCopies(gallery, pictures, bits), len(gallery), file, preference)
    groups = [_original_kept(ImageGroup(file(row), tuple(extras.values()))) for row, extras in sorted(kept.items())]
    return DedupReport(index, version.name, len(gallery), bits, tuple(groups), symmetries)


def _with_turned(
    kept: dict[int, dict[int, Duplicate]],
    copies: TurnedCopies,
    images: int,
    file: Callable[[int], StoredFile],
    preference: Callable[[int], Any],
) -> dict[int, dict[int, Duplicate]]:
    """The groups, joined where one keeps a turned copy of what another keeps.

    An image that is no copy of the one that is kept then, though a near duplicate of another copy, is left out: it is
    not superfluous.
    """
    superfluous = {row for extras in kept.values() for row in extras}
    turned: dict[int, set[int]] = {}
    for one, other in copies.pairs([row for row in range(images) if row not in superfluous]):
        turned.setdefault(one, set()).add(other)
        turned.setdefault(other, set()).add(one)
    gone: set[int] = set()
    for row in sorted(turned, key=preference):
        if row in gone:
            continue
        for other in sorted(turned[row] - gone, key=preference):
            for copy in (other, *kept.pop(other, {})):
                how = copies.copy(row, copy)
                if how is not None:
                    found = Duplicate(file(copy), how.bits, how.likeness, same_bytes=False, symmetry=how.symmetry)
                    kept.setdefault(row, {})[copy] = found
            gone.add(other)
        gone.add(row)
    return kept


def _original_kept(group: ImageGroup) -> ImageGroup:
    """The group with the smallest file of those that hold the pixels of the kept one in its place."""
    keep = group.keep
    size = (keep.image.width, keep.image.height)
    smaller = [
        extra
        for extra in group.extras
        if not extra.bits and extra.symmetry is None and (extra.file.image.width, extra.file.image.height) == size
        and extra.file.bytes is not None and extra.file.bytes < (keep.bytes or 0)
    ]  # fmt: skip
    pixels = _pixels(keep) if smaller else None
    if pixels is None:
        return group
    for extra in sorted(smaller, key=lambda extra: extra.file.bytes or 0):
        found = _pixels(extra.file)
        if found is not None and np.array_equal(pixels, found):
            # All that was found out about the others holds for these pixels, whichever file they are read from.
            again = Duplicate(keep, extra.bits, extra.similarity, extra.same_bytes)
            others = (again if other is extra else other for other in group.extras)
            return ImageGroup(extra.file, tuple(others))
    return group


def _pixels(file: StoredFile) -> NDArray[np.uint8] | None:
    """All pixels of a file; None where they can no longer be read."""
    try:
        # At full scale: large JPEGs would be read at a reduced one.
        return decode_image(read_uri(file.image.uri), DecodeLimits(draft_side=None)).pixels
    except (CbirError, OSError):
        return None


def _file_bytes(uri: str) -> int | None:
    path, member = split_uri(uri)
    try:
        return path.stat().st_size if member is None else archive_members(path)[member].size
    except (OSError, KeyError, zipfile.BadZipFile, tarfile.TarError):
        return None
