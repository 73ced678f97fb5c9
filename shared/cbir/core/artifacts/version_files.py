"""The files of a version, opened once: what is checked is what is read.

Every name is walked from the index's folder without following a link, and only plain files are opened.  A file keeps
its descriptor, and its contents are read through that, so that nothing can take its place between the check of its
size and checksum and its use, and a version that is collected meanwhile can still be read.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.errors import ArtifactError

__all__ = ["VersionFiles", "is_file_name", "open_folder", "read_beside"]

#: Of one part of a name; the parts are joined by ``/``.
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")
_DEEPEST = 4
_BLOCK = 2**20
# A pipe in place of a file must not hold up whoever opens it.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


def is_file_name(name: object) -> bool:
    """Whether a manifest may use this name: relative, with no way up and out."""
    if not isinstance(name, str):
        return False
    parts = name.split("/")
    return len(parts) <= _DEEPEST and all(_PART.fullmatch(part) for part in parts)


def open_folder(index: Path, *parts: str) -> int:
    """A descriptor of a folder below ``index``, reached without a link.

    Raises:
        FileNotFoundError: There is none.
        ArtifactError: ``INDEX_LINKED``: a part of the way is a link or no folder.
    """
    descriptor = os.open(index, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    place = index
    for part in parts:
        place = place / part
        try:
            inner = os.open(part, _FOLDER_FLAGS, dir_fd=descriptor)
        except (FileNotFoundError, PermissionError) as error:
            raise _named(place, error) from None
        except OSError as error:
            raise _linked(place) from error
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


def read_beside(folder: int, name: str, path: Path, most: int) -> bytes:
    """The bytes of a file in an open folder.

    Args:
        path: Of the file, to be named in errors.
        most: Largest size in bytes.

    Raises:
        FileNotFoundError: There is none.
        ArtifactError: ``INDEX_LINKED`` or ``INDEX_CORRUPT``: it is a link or no file, or larger.
    """
    descriptor = _open_file(folder, name, path)
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(descriptor).st_size > most:
            raise ArtifactError(f"{path} is larger than {most:,} bytes, so it is no such file", reason="INDEX_CORRUPT")
        return file.read(most)


class VersionFiles:
    """The files that a manifest lists.

    Args:
        index: The INDEX folder.
        version: The name of the version.
        facts: By name: ``size`` and ``sha256``.
        verify: Compare a file with its checksum before it is used for the first time.

    Raises:
        ArtifactError: ``INDEX_INCOMPLETE``: a file is missing or of another size; ``INDEX_LINKED``: it is a link.
    """

    def __init__(
        self, index: Path, version: str, facts: Mapping[str, Mapping[str, Any]], *, verify: bool = True
    ) -> None:
        self.path, self._facts, self._verify = index / "versions" / version, facts, verify
        self._descriptors: dict[str, int] = {}
        self._verified: set[str] = set()
        self._lock = threading.Lock()
        # However this object goes, what it opened is closed.
        weakref.finalize(self, _close_all, self._descriptors)
        for name in facts:
            self._open(index, version, name)

    def __contains__(self, name: str) -> bool:
        return name in self._facts

    def is_intact(self, name: str) -> bool:
        """Whether a file has its checksum."""
        with self._lock:
            if name in self._verified:
                return True
        if _digest(self._descriptors[name]) != self._facts[name]["sha256"]:
            return False
        with self._lock:
            self._verified.add(name)
        return True

    def link(self, name: str, path: Path) -> bool:
        """Make ``path`` a hard link to the very file that was opened; False: a copy, where that cannot be.

        Raises:
            ArtifactError: ``INDEX_CORRUPT``: only a copy could be made, and the file does not match its checksum.
        """
        try:
            os.link(self.path / name, path, follow_symlinks=False)
            if os.path.samestat(os.fstat(self._descriptors[name]), path.lstat()):
                return True
        except OSError:
            pass
        path.unlink(missing_ok=True)
        self.verify([name])
        with path.open("xb") as file:
            for block in _blocks(self._descriptors[name], int(self._facts[name]["size"])):
                file.write(block)
        return False

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Compare files with their checksums, several at a time; by default all.

        Raises:
            ArtifactError: ``INDEX_CORRUPT`` naming the first that differs.
        """
        wanted = list(self._facts if names is None else names)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1, max(1, len(wanted))), "cbir-verify") as pool:
            for name, intact in zip(wanted, pool.map(self.is_intact, wanted), strict=True):
                if not intact:
                    raise ArtifactError(
                        f"{self.path / name} does not match its checksum: roll back with `cbir rollback`, or index "
                        "again with --rebuild",
                        reason="INDEX_CORRUPT",
                    )

    def place(self, name: str) -> str:
        """A path under which libraries open the very file that was checked, whatever its name leads to now."""
        if self._verify:
            self.verify([name])
        return f"/dev/fd/{self._descriptors[name]}"

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        size = int(self._facts[name]["size"])
        data = b"".join(_blocks(self._descriptors[name], size))
        # What is parsed is what was hashed, even where the file changes this very moment.
        if self._verify and hashlib.sha256(data).hexdigest() != self._facts[name]["sha256"]:
            self.verify([name])
            raise ArtifactError(f"{self.path / name} changed while it was read: try again", reason="INDEX_CORRUPT")
        return data

    def array(self, name: str) -> NDArray[Any]:
        """A ``.npy`` file, memory-mapped.

        Raises:
            ValueError: It is none.
        """
        return np.lib.format.open_memmap(self.place(name), mode="r")

    def _open(self, index: Path, version: str, name: str) -> None:
        *folders, file = name.split("/")
        place = self.path / name
        try:
            folder = open_folder(index, "versions", version, *folders)
            try:
                descriptor = _open_file(folder, file, place)
            finally:
                os.close(folder)
        except FileNotFoundError:
            raise _incomplete(place, "is missing") from None
        self._descriptors[name] = descriptor
        size = os.fstat(descriptor).st_size
        if size != self._facts[name]["size"]:
            raise _incomplete(place, f"has {size:,} bytes in place of {self._facts[name]['size']:,}")


def _open_file(folder: int, name: str, path: Path) -> int:
    try:
        descriptor = os.open(name, _FLAGS, dir_fd=folder)
    except (FileNotFoundError, PermissionError) as error:
        raise _named(path, error) from None
    except OSError as error:
        raise _linked(path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _linked(path)
    return descriptor


def _named(path: Path, error: OSError) -> Exception:
    """Say which file it was, which those who open it relative to a folder are not told."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(error.errno, error.strerror, str(path))
    return ArtifactError(f"{path} may not be read by this user: give it the right to", reason="INDEX_UNREADABLE")


def _blocks(descriptor: int, size: int) -> Iterable[bytes]:
    for start in range(0, size, _BLOCK):
        yield os.pread(descriptor, min(_BLOCK, size - start), start)


def _digest(descriptor: int) -> str:
    digest = hashlib.sha256()
    # One byte more than there should be is read, so that a file which grew is seen.
    for block in _blocks(descriptor, os.fstat(descriptor).st_size):
        digest.update(block)
    return digest.hexdigest()


def _close_all(descriptors: dict[str, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def _incomplete(path: Path, found: str) -> ArtifactError:
    return ArtifactError(
        f"{path} {found}, so the version was only half copied: copy it again, or roll back", reason="INDEX_INCOMPLETE"
    )


def _linked(path: Path) -> ArtifactError:
    return ArtifactError(
        f"{path} is a link, or no plain file or folder, and may lead out of the index: put what it stands for in its "
        "place",
        reason="INDEX_LINKED",
    )
