"""Reads images on other machines: a file by its URL, a member of an archive there, or a row of a table there."""

from __future__ import annotations

import re
import tarfile
import threading
import zipfile
import zlib
from collections import OrderedDict

from cbir.core.errors import ImageError, SourceError
from cbir.core.files.archives import ArchiveTable, archive_table, check_size, member_bytes, refuse
from cbir.core.files.remote import remote_files
from cbir.core.files.table_rows import RowTable
from cbir.core.files.uri import MAX_BYTES, row_bytes

__all__ = ["read_remote", "remote_archive", "remote_table", "split_remote"]

_INSIDE = re.compile(r"(.*?\.(zip|tar|parquet|arrow))!/(.*)", re.IGNORECASE | re.DOTALL)
#: Tables of members and rows that are kept.
_KEPT = 8

_lock = threading.Lock()
_kept: OrderedDict[str, ArchiveTable | RowTable] = OrderedDict()


def split_remote(uri: str) -> tuple[str, str | None]:
    """The URL of the file, and the member or row in it, None for a plain file."""
    match = _INSIDE.fullmatch(uri)
    return (match[1], match[3]) if match else (uri, None)


def remote_archive(url: str) -> ArchiveTable:
    """The members of a ``.zip`` or ``.tar``; the tables of the last few files are kept for the run.

    Raises:
        OSError: It cannot be reached.
        zipfile.BadZipFile, tarfile.TarError: It is damaged or no archive of its kind.
    """
    with _lock:
        known = _kept.get(url)
    if isinstance(known, ArchiveTable):
        return known
    files = remote_files(url)
    with files.open(url) as file:
        table = archive_table(file, files.size_and_stamp(url)[0], zipped=url.lower().endswith(".zip"))
    _keep(url, table)
    return table


def remote_table(url: str) -> RowTable:
    """A ``.parquet`` or ``.arrow`` file; the last few are kept for the run.

    Raises:
        OSError: It cannot be reached.
        ValueError: It is damaged, or has no column of images.
    """
    with _lock:
        known = _kept.get(url)
    if isinstance(known, RowTable):
        return known
    table = RowTable(remote_files(url).open(url), parquet=url.lower().endswith(".parquet"))
    _keep(url, table)
    return table


def _keep(url: str, table: ArchiveTable | RowTable) -> None:
    with _lock:
        _kept[url] = table
        while len(_kept) > _KEPT:
            _kept.popitem(last=False)


def read_remote(uri: str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Read the bytes of an image file on another machine.  Thread-safe.

    Raises:
        ImageError: ``IMAGE_MISSING``, ``IMAGE_UNREADABLE`` or ``IMAGE_TOO_LARGE``.
    """
    url, inside = split_remote(uri)
    try:
        if inside is None:
            data = remote_files(url).read(url, 0, max_bytes + 1)
            check_size(uri, len(data), max_bytes)
            return data
        if url.lower().endswith((".parquet", ".arrow")):
            return row_bytes(uri, remote_table(url), inside, max_bytes)
        entry = remote_archive(url).find(inside)
        if entry is None:
            refuse(uri, "the archive has no member of that name")
        files = remote_files(url)
        return member_bytes(
            uri, entry, lambda start, length: files.read(url, start, length), max_bytes,
            zipped=url.lower().endswith(".zip"),
        )  # fmt: skip
    except ImageError:
        raise
    except FileNotFoundError:
        refuse(uri, "there is no such file", "IMAGE_MISSING")
    except SourceError as error:
        refuse(uri, str(error))
    except OSError as error:
        refuse(uri, error.strerror or str(error))
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        refuse(uri, str(error) or type(error).__name__)
