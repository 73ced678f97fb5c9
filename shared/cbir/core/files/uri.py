"""Uris of images: the path of a file, ``<archive>!/<member>`` for a file in a ``.zip`` or ``.tar``, or
``<table>!/<row>`` for one in a row of a ``.parquet`` or ``.arrow`` file.

The table of an archive's members is kept in memory, and every read opens the archive, seeks and closes it.  So any
number of threads and forked processes can read at the same time without a lock.
"""

from __future__ import annotations

import re
import tarfile
import threading
import zipfile
import zlib
from errno import EAGAIN, EBUSY, EIO, ESTALE, ETIMEDOUT
from pathlib import Path
from stat import S_ISREG

from cbir.core.errors import ImageError
from cbir.core.files.archives import ArchiveMember, archive_members, check_size, member_bytes, refuse
from cbir.core.files.table_rows import TABLE_SUFFIXES, RowTable, row_table

__all__ = ["MAX_BYTES", "member_uri", "read_uri", "row_bytes", "split_uri"]

#: Largest image file that is read into memory unless the caller says otherwise, in bytes.
MAX_BYTES = 256 * 2**20

_ARCHIVE = re.compile(r"(.*?\.(?:zip|tar|parquet|arrow))!/(.*)", re.IGNORECASE | re.DOTALL)
_LONGEST_NUMBER = 12
#: Errors of disks and networks that may be gone a moment later, and the seconds to wait before another try.
_PASSING = (EAGAIN, EBUSY, EIO, ESTALE, ETIMEDOUT)
_WAITS = (0.1, 0.4)


def member_uri(archive: Path | str, member: str) -> str:
    """The uri of a member of an archive."""
    return f"{archive}!/{member}"


def split_uri(uri: str) -> tuple[Path, str | None]:
    """Split a uri into the file on disk and the name of the archive's member, None for a plain file."""
    match = _ARCHIVE.fullmatch(uri)
    # A folder may be called "x.zip!", so the uri is a plain file where such a file exists.
    if match is None or (Path(uri).is_file() and not Path(match[1]).is_file()):
        return Path(uri), None
    return Path(match[1]), match[2]


def read_uri(uri: str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Read the bytes of an image file.  Thread-safe.

    Raises:
        ImageError: ``IMAGE_MISSING``, ``IMAGE_UNREADABLE`` (no permission, damaged archive), ``IMAGE_TOO_LARGE``.
    """
    path, member = split_uri(uri)
    try:
        for wait in _WAITS:
            try:
                return _read(uri, path, member, max_bytes)
            except OSError as error:
                if error.errno not in _PASSING:
                    raise
                threading.Event().wait(wait)
        return _read(uri, path, member, max_bytes)
    except ImageError:
        raise
    except FileNotFoundError:
        refuse(uri, "there is no such file", "IMAGE_MISSING")
    except PermissionError:
        refuse(uri, "this user may not read it")
    except OSError as error:
        refuse(uri, error.strerror or str(error))
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        # Errors of pyarrow are ValueErrors too.
        refuse(uri, str(error) or type(error).__name__)


def _read(uri: str, path: Path, member: str | None, max_bytes: int) -> bytes:
    if member is None:
        return _read_file(path, max_bytes)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return row_bytes(uri, row_table(path), member, max_bytes)
    entry = archive_members(path).find(member)
    if entry is None:
        refuse(uri, f"{path.name} has no member of that name")
    return _read_member(path, entry, max_bytes)


def row_bytes(uri: str, table: RowTable, row: str, max_bytes: int) -> bytes:
    """The file in a row of a table.

    Raises:
        ImageError: It is too large.
        ValueError: There is none.
    """
    if not row.isdecimal() or len(row) > _LONGEST_NUMBER:
        raise ValueError(f"{row[:40]!r} is no row")
    data = table.read(int(row), max_bytes)
    check_size(uri, len(data), max_bytes)
    return data


def _read_file(path: Path, max_bytes: int) -> bytes:
    # Checked before opening: opening a named pipe would wait for a writer.
    status = path.stat()
    if not S_ISREG(status.st_mode):
        refuse(str(path), "it is no regular file")
    check_size(str(path), status.st_size, max_bytes)
    with path.open("rb") as file:
        # One byte more than allowed, so that a file that grows meanwhile is noticed but cannot fill the memory.
        data = file.read(max_bytes + 1)
    check_size(str(path), len(data), max_bytes)
    return data


def _read_member(path: Path, entry: ArchiveMember, max_bytes: int) -> bytes:
    zipped = path.suffix.lower() == ".zip"
    uri = member_uri(path, entry.name)
    if zipped and entry.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not entry.encrypted:
        check_size(uri, entry.size, max_bytes)
        with zipfile.ZipFile(path) as archive:
            # By place: of several members of a name, and of names in other letters, this one is meant.
            return archive.read(next(info for info in archive.infolist() if info.header_offset == entry.offset))
    with path.open("rb") as file:

        def read(start: int, length: int) -> bytes:
            file.seek(start)
            return file.read(length)

        return member_bytes(uri, entry, read, max_bytes, zipped=zipped)
