"""Where a file of images lies, an archive or a table: on this machine, or on another by its URL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import urlsplit

from cbir.core.files import (
    ArchiveTable,
    RowTable,
    archive_members,
    read_remote,
    read_uri,
    remote_archive,
    remote_files,
    remote_table,
    row_table,
)

__all__ = ["LocalPlace", "Place", "RemotePlace"]


class Place(Protocol):
    """One archive or table."""

    @property
    def uri(self) -> str:
        """How it is named."""

    @property
    def name(self) -> str:
        """The file's name, without folders."""

    def stamp(self) -> str:
        """Text that changes when the file may have changed."""

    def members(self) -> ArchiveTable:
        """The files in an archive."""

    def table(self) -> RowTable:
        """The rows of a table."""

    def read(self, uri: str, max_bytes: int) -> bytes:
        """The bytes of one file inside."""


@dataclass(frozen=True)
class LocalPlace:
    """A file on this machine."""

    path: Path

    @property
    def uri(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    def stamp(self) -> str:
        return str(self.path.stat().st_mtime_ns)

    def members(self) -> ArchiveTable:
        return archive_members(self.path)

    def table(self) -> RowTable:
        return row_table(self.path)

    def read(self, uri: str, max_bytes: int) -> bytes:
        return read_uri(uri, max_bytes=max_bytes)


@dataclass(frozen=True)
class RemotePlace:
    """A file on another machine."""

    url: str

    @property
    def uri(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return PurePosixPath(urlsplit(self.url).path).name

    def stamp(self) -> str:
        return remote_files(self.url).size_and_stamp(self.url)[1]

    def members(self) -> ArchiveTable:
        return remote_archive(self.url)

    def table(self) -> RowTable:
        return remote_table(self.url)

    def read(self, uri: str, max_bytes: int) -> bytes:
        return read_remote(uri, max_bytes=max_bytes)


#: What makes a place of a name.
PlaceMaker = Callable[[str], Place]
