"""Archives, zip and tar: which files they hold and where, so that any of them is read without the others."""

from __future__ import annotations

import tarfile
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cbir.core.errors import ImageError
from cbir.core.files.spelling import nfc

__all__ = [
    "ArchiveMember",
    "ArchiveTable",
    "archive_members",
    "archive_table",
    "check_size",
    "member_bytes",
    "refuse",
]

_ZIP_LOCAL_HEADER = 30  # bytes
_ZIP_UTF8 = 0x800  # the flag that says that a name is UTF-8
_ZIP_SLACK = 2**20  # bytes by which a deflated member may be longer than it is unpacked
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
            with path.open("rb") as file:
                table = archive_table(file, status.st_size, zipped=path.suffix.lower() == ".zip")
        _tables[key] = table
        while len(_tables) > _TABLES_KEPT:
            _tables.popitem(last=False)
    return table


_lock = threading.Lock()
_tables: OrderedDict[tuple[str, int, int], ArchiveTable] = OrderedDict()


def archive_table(file: Any, size: int, *, zipped: bool) -> ArchiveTable:
    """The regular files of an archive that is open.

    Args:
        size: Of the archive in bytes.
        zipped: It is a zip, and no tar.

    Raises:
        zipfile.BadZipFile, tarfile.TarError: It is damaged or no archive of its kind.
    """
    return _zip_table(file) if zipped else _tar_table(file, size)


def _zip_table(file: Any) -> ArchiveTable:
    table = ArchiveTable()
    with zipfile.ZipFile(file) as archive:
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


def _tar_table(file: Any, size: int) -> ArchiveTable:
    table = ArchiveTable()
    # Mode "r:" refuses compressed tars, whose members cannot be addressed by offset.
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for info in archive:
            if info.islnk() and (target := table.get(info.linkname)) is not None:
                table.add(ArchiveMember(info.name, target.offset, target.stored, target.size, mtime=int(info.mtime)))
            elif info.isreg() and not info.issparse():
                if info.offset_data + info.size > size:
                    raise tarfile.ReadError(f"it ends in the middle of {info.name}")
                table.add(ArchiveMember(info.name, info.offset_data, info.size, info.size, mtime=int(info.mtime)))
    return table


def member_bytes(
    uri: str, entry: ArchiveMember, read: Callable[[int, int], bytes], max_bytes: int, *, zipped: bool
) -> bytes:
    """The bytes of a member, by ``read(start, length)`` of its archive.

    Raises:
        ImageError: It is too large, encrypted, or compressed in a way that is not read here.
        zipfile.BadZipFile: Its bytes are damaged.
    """
    check_size(uri, entry.size, max_bytes)
    if entry.encrypted:
        refuse(uri, "it is encrypted: unpack the archive with its password first")
    if entry.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        refuse(uri, "it is compressed in a way that only local archives are read in")
    start = entry.offset
    if zipped:
        header = read(start, _ZIP_LOCAL_HEADER)
        if len(header) < _ZIP_LOCAL_HEADER or header[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile("its header in the archive is damaged")
        start += _ZIP_LOCAL_HEADER + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    # What the directory says of a member's place is not believed beyond the limit either.
    data = read(start, min(entry.stored, max_bytes + _ZIP_SLACK))
    if entry.method == zipfile.ZIP_DEFLATED:
        # Unpacks at most one byte more than the archive's directory states, so a bomb cannot fill the memory.
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, entry.size + 1)
    if len(data) != entry.size or (entry.crc is not None and zlib.crc32(data) != entry.crc):
        raise zipfile.BadZipFile("its bytes in the archive are damaged")
    return data


def check_size(uri: str, size: int, max_bytes: int) -> None:
    """Refuse an image file of more bytes than the limit."""
    if size > max_bytes:
        raise ImageError(
            f"{uri} has {size:,} bytes, more than the limit of {max_bytes:,}: shrink the image first",
            reason="IMAGE_TOO_LARGE",
            uri=uri,
            bytes=size,
            limit=max_bytes,
        )


def refuse(uri: str, why: str, reason: str = "IMAGE_UNREADABLE") -> NoReturn:
    """Say that an image cannot be read, and why."""
    raise ImageError(f"{uri} cannot be read: {why}", reason=reason, uri=uri) from None
