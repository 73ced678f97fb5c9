"""The walk over a folder: the files of images below it with their sizes and times, and one stamp of all of them.

Where nothing has changed, this is all that an update does, so it takes little more than the system does to list the
folders and to tell of each file.  Memory: the names in one folder.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from errno import EACCES, ELOOP, ENOENT, ENOTDIR
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from cbir.core.errors import SourceError
from cbir.indexer.sources.image import ScanProblem, is_text
from cbir.indexer.sources.names import Chooser

__all__ = ["FolderPiece", "FolderWalk"]

#: Most files of a piece.
_PIECE = 4096
#: What the stamp is of: to be changed with what goes into it.
_STAMP_OF = b"folder 1: parts, names, sizes, times in ns; problems\n"


class FolderPiece(NamedTuple):
    """Some files of one folder.

    Attributes:
        parts: The names on the way from the source to the folder.
        names: (n,) of the files.
        sizes: (n,) in bytes.
        times: (n,) of their last change, in nanoseconds.
    """

    parts: tuple[str, ...]
    names: list[str]
    sizes: array[int]
    times: array[int]


class FolderWalk:
    """One walk, by iterating once: folder by folder, and there by name, files before links.

    Attributes:
        problems: What was passed over so far.
        stamp: Once the walk has ended: a digest that differs as soon as a file of images comes, goes or changes its
            size or time, or something else is passed over.
    """

    def __init__(self, path: Path, exclude: Sequence[str] = ()) -> None:
        self.problems: list[ScanProblem] = []
        self.stamp = ""
        self._path, self._exclude = path, exclude

    def __iter__(self) -> Iterator[FolderPiece]:
        chooser = Chooser(self._exclude)
        digest = sha256(_STAMP_OF)
        for piece in self._folders(chooser):
            text = "\0".join((*piece.parts, "", *piece.names)).encode()
            digest.update(b"%d %d\n" % (len(piece.names), len(text)))
            for part in (text, piece.sizes, piece.times):
                digest.update(part)
            yield piece
        left_out = [ScanProblem(f"{self._path}/**/*{end}", why) for end, why in chooser.reasons().items()]
        self.problems[:0] = left_out
        for problem in self.problems:
            digest.update(f"{problem.uri}\0{problem.reason}\n".encode())
        self.stamp = digest.hexdigest()

    def _folders(self, chooser: Chooser) -> Iterator[FolderPiece]:
        # Linked folders wait until all real ones are done, so that a link never takes a folder's images away
        # from the folder's own name.
        real: deque[tuple[str, ...]] = deque([()])
        linked: deque[tuple[str, ...]] = deque()
        seen: set[tuple[int, int] | str] = set()
        while real or linked:
            parts = real.popleft() if real else linked.popleft()
            folder = self._path.joinpath(*parts)
            files: list[str] = []
            folders: list[str] = []
            links: list[os.DirEntry[str]] = []
            try:
                status = folder.stat()
                # Some network file systems number nothing.
                place = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)
                if place in seen:
                    continue
                seen.add(place)
                with os.scandir(folder) as listing:
                    for entry in listing:
                        name = entry.name
                        if not chooser.passes((*parts, name)):
                            continue
                        if entry.is_symlink():
                            links.append(entry)
                        elif entry.is_dir():
                            folders.append(name)
                        elif chooser.is_image(name):
                            files.append(name)
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except (OSError, ValueError) as error:
                self._folder_failed(folder, parts, error)
                continue
            try:
                files.sort()
                real.extend((*parts, name) for name in sorted(folders))
                links.sort(key=lambda entry: entry.name)
                files += self._linked_files(links, parts, chooser, linked)
                for start in range(0, len(files), _PIECE):
                    yield self._looked_at(folder, parts, files[start : start + _PIECE], descriptor)
            finally:
                os.close(descriptor)

    def _linked_files(
        self,
        links: Sequence[os.DirEntry[str]],
        parts: tuple[str, ...],
        chooser: Chooser,
        linked: deque[tuple[str, ...]],
    ) -> Iterator[str]:
        """The links that are taken for images; those to folders are put on the list of these."""
        for entry in links:
            uri = str(self._path.joinpath(*parts, entry.name))
            try:
                if entry.is_dir():
                    linked.append((*parts, entry.name))
                    continue
                if chooser.is_image(entry.name):
                    entry.stat()
                    yield entry.name
                elif "." not in entry.name and not Path(entry.path).exists():
                    # It may have been a folder of images.
                    self._pass_over(uri, "cannot be read: the link leads nowhere")
            except OSError as error:
                # A link that leads to itself, through a file, or where this user may not look.
                self._pass_over(uri, f"cannot be read: {_why(error)}")

    def _looked_at(self, folder: Path, parts: tuple[str, ...], names: list[str], descriptor: int) -> FolderPiece:
        piece = FolderPiece(parts, [], array("q"), array("q"))
        if not is_text("\0".join((str(folder), *names))):
            names = [name for name in names if self._is_named_in_text(folder, name)]
        for name in names:
            try:
                # By the folder's descriptor, so that the system need not find the folder anew for each file.
                status = os.stat(name, dir_fd=descriptor)
            except OSError as error:
                self._pass_over(str(folder / name), f"cannot be read: {error.strerror or error}")
                continue
            if not S_ISREG(status.st_mode):
                self._pass_over(str(folder / name), "is no regular file")
                continue
            piece.names.append(name)
            piece.sizes.append(status.st_size)
            piece.times.append(status.st_mtime_ns)
        return piece

    def _is_named_in_text(self, folder: Path, name: str) -> bool:
        if text := is_text(str(folder / name)):
            return text
        self._pass_over(str(folder / name), "its name is not valid UTF-8: rename it")
        return False

    def _folder_failed(self, folder: Path, parts: tuple[str, ...], error: OSError | ValueError) -> None:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if not parts:
            message = f"the folder {folder} cannot be read: {why}; check its permissions"
            raise SourceError(message, reason="SOURCE_UNREADABLE", source=folder) from error
        self._pass_over(str(folder), f"the folder cannot be read: {why}")

    def _pass_over(self, uri: str, reason: str) -> None:
        self.problems.append(ScanProblem(uri.encode(errors="backslashreplace").decode(), reason))


def _why(error: OSError) -> str:
    """Say what is wrong with a link by what it is that it leads to."""
    reasons = {
        ENOENT: "the link leads nowhere",
        ELOOP: "the link leads to itself",
        ENOTDIR: "the link leads through a file as if it were a folder",
        EACCES: "the link leads where this user may not look",
    }
    return reasons.get(error.errno or 0, f"the link cannot be followed ({error.strerror})")
