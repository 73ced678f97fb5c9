"""Uris of images: the path of a file, or ``<archive>!/<member>`` for a file in a ``.zip`` or ``.tar``.

The table of an archive's members is kept in memory, and every read opens the archive, seeks and closes it.  So any
number of threads and forked processes can read at the same time without a lock.
"""

from __future__ import annotations

import re
import tarfile
import threading
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import NoReturn

from cbir.core.errors import ImageError
from cbir.core.files.spelling import nfc

__all__ = ["MAX_BYTES", "ArchiveMember", "ArchiveTable", "archive_members", "member_uri", "read_uri", "split_uri"]

#: Largest image file that is read into memory unless the caller says otherwise, in bytes.
MAX_BYTES = 256 * 2**20

_ARCHIVE = re.compile(r"(.*?\.(?:zip|tar))!/(.*)", re.IGNORECASE | re.DOTALL)
_ZIP_LOCAL_HEADER = 30  # bytes
_ZIP_UTF8 = 0x800  # the flag that says that a name is UTF-8
#: Archives whose table of members is kept.
_TABLES_KEPT = 16


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """The position of one file inside an archive.

    Attributes:
        name: The name in the archive.
        offset: Where the data (tar) or the local header (zip) begins, in bytes.
        stored: Bytes in the archive, compressed or not.
        size: Bytes when unpacked.
        method: A ``zipfile`` compression method; ``ZIP_STORED`` in tars.
        crc: CRC-32 of the content; ``None`` in tars, which have none.
        mtime: Seconds since 1970 (tar), 0 in zips.
        encrypted: Whether a password is needed.
    """

    name: str
    offset: int
    stored: int
    size: int
    method: int = zipfile.ZIP_STORED
    crc: int | None = None
    mtime: int = 0
    encrypted: bool = False


class ArchiveTable(dict[str, ArchiveMember]):
    """The regular files of an archive by name, in the archive's order; the last of a name wins.

    Attributes:
        repeated: Names that occur more than once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.repeated: list[str] = []
        self._spellings: dict[str, str] | None = None

    def add(self, member: ArchiveMember) -> None:
        """Take in a member."""
        if member.name in self and member.name not in self.repeated:
            self.repeated.append(member.name)
        self[member.name] = member

    def find(self, name: str) -> ArchiveMember | None:
        """Return the member of a name, however its accents are spelt, and as it was read from zips of macOS before."""
        if name in self or name.isascii():
            return self.get(name)
        if self._spellings is None:
            self._spellings = {nfc(known): known for known in self if not known.isascii()}
        spelling = self._spellings.get(nfc(name)) or self._spellings.get(nfc(_as_utf8(name)))
        return None if spelling is None else self[spelling]


def member_uri(archive: Path, member: str) -> str:
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
        ImageError: ``IMAGE_UNREADABLE`` (missing, no permission, damaged archive), ``IMAGE_TOO_LARGE``.
    """
    path, member = split_uri(uri)
    try:
        if member is None:
            return _read_file(path, max_bytes)
        entry = archive_members(path).find(member)
        if entry is None:
            _refuse(uri, f"{path.name} has no member of that name")
        return _read_member(path, entry, max_bytes)
    except ImageError:
        raise
    except FileNotFoundError:
        _refuse(uri, "there is no such file")
    except PermissionError:
        _refuse(uri, "this user may not read it")
    except OSError as error:
        _refuse(uri, error.strerror or str(error))
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        _refuse(uri, str(error) or type(error).__name__)


def archive_members(path: Path) -> ArchiveTable:
    """The regular files of a ``.zip`` or ``.tar`` by name.

    Tables are kept, and read again when the size or the time of the archive changes.

    Raises:
        OSError: The archive cannot be opened.
        zipfile.BadZipFile, tarfile.TarError: It is damaged or no archive of its kind.
    """
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns)
    with _lock:
        table = _tables.pop(key, None)
        if table is None:
            table = _zip_table(path) if path.suffix.lower() == ".zip" else _tar_table(path, status.st_size)
        _tables[key] = table
        while len(_tables) > _TABLES_KEPT:
            _tables.popitem(last=False)
    return table


_lock = threading.Lock()
_tables: OrderedDict[tuple[str, int, int], ArchiveTable] = OrderedDict()


def _zip_table(path: Path) -> ArchiveTable:
    table = ArchiveTable()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            told = info.flag_bits & _ZIP_UTF8
            member = ArchiveMember(
                name=info.filename if told else _as_utf8(info.filename),
                offset=info.header_offset,
                stored=info.compress_size,
                size=info.file_size,
                method=info.compress_type,
                crc=info.CRC,
                encrypted=bool(info.flag_bits & 0x1),
            )
            table.add(member)
    return table


def _as_utf8(name: str) -> str:
    """Undo that a name in UTF-8 was taken for the letters of DOS: macOS writes zips without the flag that says so."""
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name


def _tar_table(path: Path, size: int) -> ArchiveTable:
    table = ArchiveTable()
    # Mode "r:" refuses compressed tars, whose members cannot be addressed by offset.
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            if info.islnk() and (target := table.get(info.linkname)) is not None:
                table.add(ArchiveMember(info.name, target.offset, target.stored, target.size, mtime=int(info.mtime)))
            elif info.isreg() and not info.issparse():
                if info.offset_data + info.size > size:
                    raise tarfile.ReadError(f"it ends in the middle of {info.name}")
                table.add(ArchiveMember(info.name, info.offset_data, info.size, info.size, mtime=int(info.mtime)))
    return table


def _read_file(path: Path, max_bytes: int) -> bytes:
    # Checked before opening: opening a named pipe would wait for a writer.
    status = path.stat()
    if not S_ISREG(status.st_mode):
        _refuse(str(path), "it is no regular file")
    _check_size(str(path), status.st_size, max_bytes)
    with path.open("rb") as file:
        # One byte more than allowed, so that a file that grows meanwhile is noticed but cannot fill the memory.
        data = file.read(max_bytes + 1)
    _check_size(str(path), len(data), max_bytes)
    return data


def _read_member(path: Path, entry: ArchiveMember, max_bytes: int) -> bytes:
    uri = member_uri(path, entry.name)
    _check_size(uri, entry.size, max_bytes)
    if entry.encrypted:
        _refuse(uri, "it is encrypted: unpack the archive with its password first")
    if path.suffix.lower() == ".zip" and entry.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path) as archive:
            # By place: of several members of a name, and of names in other letters, this one is meant.
            return archive.read(next(info for info in archive.infolist() if info.header_offset == entry.offset))
    with path.open("rb") as file:
        file.seek(entry.offset)
        if path.suffix.lower() == ".zip":
            header = file.read(_ZIP_LOCAL_HEADER)
            if len(header) < _ZIP_LOCAL_HEADER or header[:4] != b"PK\x03\x04":
                raise zipfile.BadZipFile("its header in the archive is damaged")
            name_length, extra_length = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
            file.seek(name_length + extra_length, 1)
        data = file.read(entry.stored)
    if entry.method == zipfile.ZIP_DEFLATED:
        # Unpacks at most one byte more than the archive's directory states, so a bomb cannot fill the memory.
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, entry.size + 1)
    if len(data) != entry.size or (entry.crc is not None and zlib.crc32(data) != entry.crc):
        raise zipfile.BadZipFile("its bytes in the archive are damaged")
    return data


def _check_size(uri: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageError(
            f"{uri} has {size:,} bytes, more than the limit of {max_bytes:,}: shrink the image first",
            reason="IMAGE_TOO_LARGE",
            uri=uri,
            bytes=size,
            limit=max_bytes,
        )


def _refuse(uri: str, why: str) -> NoReturn:
    message = f"{uri} cannot be read: {why}"
    raise ImageError(message, reason="IMAGE_UNREADABLE", uri=uri) from None
