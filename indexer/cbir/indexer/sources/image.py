"""An image of a source, and the protocol of all sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from cbir.core.files import ArchiveMember

__all__ = [
    "IMAGE_EXTENSIONS",
    "ScanProblem",
    "Source",
    "SourceImage",
    "first_folder",
    "is_hidden",
    "is_image_name",
    "is_text",
    "member_stamp",
    "shared_folders",
]

#: In folders and archives, files with these extensions are taken for images; whether they are shows in decoding.
IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})


@dataclass(frozen=True)
class SourceImage:
    """An image that was found, not yet read.

    Attributes:
        id: Stable name: the path relative to the source (POSIX), or the manifest's ``id``; if several sources are
            given, ``<source>/`` is put before a path.
        uri: Absolute file path, or ``<archive>!/<member>``; see :mod:`cbir.core.files.uri`.
        label: The class; ``None`` if it is not known.
        stamp: Text that changes when the image may have changed; made without reading its bytes.
        metadata: Metadata columns.
    """

    id: str
    uri: str
    label: str | None
    stamp: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ScanProblem:
    """Something in a source that was left out.

    Attributes:
        uri: Where it is.
        reason: One sentence that says why.
    """

    uri: str
    reason: str


class Source(Protocol):
    """A place that images come from."""

    @property
    def name(self) -> str:
        """Short name, put before the ids if there are several sources."""

    @property
    def names_ids(self) -> bool:
        """Whether the ids are the user's own, so that the source's name is never put before them."""

    @property
    def problems(self) -> Sequence[ScanProblem]:
        """What the last :meth:`scan` left out."""

    def scan(self) -> Iterator[SourceImage]:
        """Find the images, sorted by id (manifests: in their own order).

        Raises:
            SourceError: The source as a whole cannot be read.
        """

    def read(self, image: SourceImage) -> bytes:
        """Return the bytes of an image.  Thread-safe.

        Raises:
            ImageError: ``IMAGE_UNREADABLE`` or ``IMAGE_TOO_LARGE``.
        """


def is_image_name(name: str) -> bool:
    """Whether a file is taken for an image, by its extension."""
    return PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS


def is_hidden(parts: Sequence[str]) -> bool:
    """Whether a path leads through a dot file or through the folder that macOS adds to zips."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def is_text(name: str) -> bool:
    """Whether a name is valid Unicode; one that is not cannot be stored in a table or sent in a message."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def member_stamp(archive: Path, member: ArchiveMember) -> str:
    """Return the :attr:`SourceImage.stamp` of a member of an archive."""
    if member.crc is not None:
        return f"{member.crc:08x}-{member.size}"
    # Writers of WebDatasets often set every member's time to 0, so the time of the tar itself is included.
    return f"{member.size}-{member.mtime}-{member.offset}-{archive.stat().st_mtime_ns}"


def first_folder(parts: Sequence[str]) -> str | None:
    """Return the label by a relative path: its first folder, ``None`` for a file at the top."""
    return parts[0] if len(parts) > 1 else None


def shared_folders(paths: Sequence[Sequence[str]]) -> int:
    """Count the leading folders that all paths have in common."""
    if not paths:
        return 0
    # In sorted order, the common prefix of all paths is that of the first and the last.
    low, high = min(map(tuple, paths))[:-1], max(map(tuple, paths))[:-1]
    shared = 0
    while shared < min(len(low), len(high)) and low[shared] == high[shared]:
        shared += 1
    return shared
