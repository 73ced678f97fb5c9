"""One image of a source, and what every source can do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cbir.core.files import ArchiveMember, nfc

__all__ = [
    "ScanProblem",
    "Source",
    "SourceImage",
    "first_folder",
    "is_text",
    "member_stamp",
    "shared_folders",
    "tidy_label",
]

_WHOLE = re.compile(r"([+-]?\d{1,18})\.0+")


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
    """Something in a source that was passed over.

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
        """Short name, which stands before the ids when there are several sources."""

    @property
    def names_ids(self) -> bool:
        """Whether the ids are the user's own and so stand for themselves, whatever other sources there are."""

    @property
    def problems(self) -> Sequence[ScanProblem]:
        """What the last :meth:`scan` passed over."""

    def scan(self) -> Iterator[SourceImage]:
        """Find the images, one after another; the order is the same at each scan.

        Raises:
            SourceError: The source as a whole cannot be read.
        """


def is_text(name: str) -> bool:
    """Tell whether a name is Unicode; one that is not can be stored in no table and sent in no message."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def member_stamp(archive: str, member: ArchiveMember) -> str:
    """Return the :attr:`SourceImage.stamp` of a member of an archive, which has a stamp too."""
    if member.crc is not None:
        return f"{member.crc:08x}-{member.size}"
    # Writers of WebDatasets often leave every member's time at 0, hence the tar's own time too.
    return f"{member.size}-{member.mtime}-{member.offset}-{archive}"


def first_folder(parts: Sequence[str]) -> str | None:
    """Return the label that a relative path tells: its first folder, ``None`` for a file at the top."""
    return nfc(parts[0]) if len(parts) > 1 else None


def shared_folders(paths: Sequence[Sequence[str]]) -> int:
    """Count the leading folders that all paths have in common and that name no class.

    Where all lie in one folder, it is their class.
    """
    if not paths:
        return 0
    # The common prefix of all is that of the smallest and the largest.
    low, high = min(map(tuple, paths))[:-1], max(map(tuple, paths))[:-1]
    shared = 0
    while shared < min(len(low), len(high)) and low[shared] == high[shared]:
        shared += 1
    return shared - (shared > 0 and all(len(path) == shared + 1 for path in paths))


def tidy_label(text: str) -> str:
    """Return the label that a cell of a table or a sidecar names.

    A whole number is the same class with and without the ``.0`` that spreadsheets and pandas give it.
    """
    label = nfc(text.strip())
    whole = _WHOLE.fullmatch(label)
    return str(int(whole[1])) if whole else label
