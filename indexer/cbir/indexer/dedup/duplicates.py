"""The near duplicates of an index: which images are one picture, and which of them is worth keeping."""

from __future__ import annotations

import tarfile
import zipfile
from dataclasses import dataclass
from typing import Any

from cbir.core.artifacts import GalleryImage, IndexVersion
from cbir.core.files import archive_members, split_uri
from cbir.core.search import BITS, Appearance, group_near_duplicates

__all__ = ["DedupReport", "Duplicate", "ImageGroup", "StoredFile", "find_duplicates"]


@dataclass(frozen=True)
class StoredFile:
    """An image of the gallery and its file.

    Attributes:
        bytes: Size of the file now; None where it is gone.
    """

    image: GalleryImage
    bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """The facts a user chooses by."""
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
    """An image that is superfluous beside the one that is kept.

    Attributes:
        bits: In how many of 64 bits its perceptual hash differs from that of the kept image.
        similarity: How alike the ensemble finds the two, -1..1.
        same_bytes: The files are equal.
    """

    file: StoredFile
    bits: int
    similarity: float
    same_bytes: bool

    def to_json(self) -> dict[str, Any]:
        """One extra in the document of ``cbir dedup --json``."""
        alike = {"bits": self.bits, "similarity": round(self.similarity, 4), "same_bytes": self.same_bytes}
        return {**self.file.to_json(), **alike}


@dataclass(frozen=True)
class ImageGroup:
    """One picture: the image to keep, and its near duplicates, the likest first."""

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

    @property
    def extras(self) -> int:
        """Images that are superfluous."""
        return sum(len(group.extras) for group in self.groups)

    @property
    def extra_bytes(self) -> int:
        """Size of their files; those that are gone count nothing."""
        return sum(extra.file.bytes or 0 for group in self.groups for extra in group.extras)

    def to_json(self) -> dict[str, Any]:
        """The document ``cbir dedup --json`` prints."""
        return {
            "index": self.index,
            "version": self.version,
            "images": self.images,
            "bits": self.bits,
            "groups": [
                {"keep": group.keep.to_json(), "extras": [extra.to_json() for extra in group.extras]}
                for group in self.groups
            ],
            "extras": self.extras,
            "extra_bytes": self.extra_bytes,
        }


def find_duplicates(index: str, version: IndexVersion, bits: int = BITS) -> DedupReport:
    """Group the near duplicates of an index version.

    Of each group the image whose content has the most pixels is kept (of a photo and a screenshot that shows it, the
    photo), then the one with the larger file, then the one with the lower id.  What has no file any more is not kept
    while there is another.

    Args:
        index: The name of the index, for the report.
        bits: Most bits of 64 in which perceptual hashes differ.

    Raises:
        ArtifactError: A file of the version is damaged.
    """
    gallery = version.gallery
    appearance = Appearance.of(version)
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

    groups = []
    for group in group_near_duplicates(gallery.phashes, gallery.sha256, appearance.of_rows, preference, bits):
        keep = file(group.keep)
        extras = tuple(
            Duplicate(file(row), bits_off, similarity, file(row).image.sha256 == keep.image.sha256)
            for row, bits_off, similarity in zip(group.extras, group.distances, group.similarities, strict=True)
        )
        groups.append(ImageGroup(keep, extras))
    return DedupReport(index, version.name, len(gallery), bits, tuple(groups))


def _file_bytes(uri: str) -> int | None:
    path, member = split_uri(uri)
    try:
        return path.stat().st_size if member is None else archive_members(path)[member].size
    except (OSError, KeyError, zipfile.BadZipFile, tarfile.TarError):
        return None
