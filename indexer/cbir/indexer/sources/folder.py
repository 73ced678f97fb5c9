"""A folder of images; the first sub-folder is the label."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from errno import EACCES, ELOOP, ENOENT, ENOTDIR
from pathlib import Path
from stat import S_ISREG

from cbir.core.errors import SourceError
from cbir.core.files import nfc
from cbir.indexer.sources.image import ScanProblem, SourceImage, first_folder, is_text
from cbir.indexer.sources.names import Chooser

__all__ = ["FolderSource"]


class FolderSource:
    """All image files at any depth below a folder.

    Hidden files and folders, and those of the system, are ignored.  Links are followed; a folder that is reached
    twice, as in a loop of links, is read once.  Nothing that lies in the folder ends a scan: what cannot be looked at
    is passed over and told.
    """

    def __init__(self, path: Path, exclude: Sequence[str] = ()) -> None:
        self.path = path
        self.name = path.name or "root"
        self.names_ids = False
        self.problems: list[ScanProblem] = []
        self._exclude = tuple(exclude)

    def scan(self) -> Iterator[SourceImage]:
        """Find the images, folder by folder; see :class:`~cbir.indexer.sources.image.Source`."""
        self.problems = []
        chooser = Chooser(self._exclude)
        yield from self._walk(chooser)
        left_out = [ScanProblem(f"{self.path}/**/*{end}", why) for end, why in chooser.reasons().items()]
        self.problems[:0] = left_out

    def _walk(self, chooser: Chooser) -> Iterator[SourceImage]:
        # Linked folders wait until all real ones are done, so that a link never takes a folder's images away
        # from the folder's own name.
        real: deque[tuple[str, ...]] = deque([()])
        linked: deque[tuple[str, ...]] = deque()
        seen: set[tuple[int, int] | str] = set()
        while real or linked:
            parts = real.popleft() if real else linked.popleft()
            folder = self.path.joinpath(*parts)
            try:
                status = folder.stat()
                # Some network file systems number nothing.
                place = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)
                if place in seen:
                    continue
                seen.add(place)
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except (OSError, ValueError) as error:
                self._folder_failed(folder, parts, error)
                continue
            for entry in entries:
                path = (*parts, entry.name)
                if not chooser.passes(path):
                    continue
                try:
                    if entry.is_dir():
                        (linked if entry.is_symlink() else real).append(path)
                        continue
                except OSError as error:
                    # A link that leads to itself, through a file, or where this user may not look.
                    self._pass_over(str(self.path.joinpath(*path)), f"cannot be read: {_why(entry, error)}")
                    continue
                if chooser.is_image(entry.name):
                    if (image := self._image(entry, path)) is not None:
                        yield image
                elif "." not in entry.name and entry.is_symlink() and not Path(entry.path).exists():
                    # It may have been a folder of images.
                    self._pass_over(str(self.path.joinpath(*path)), "cannot be read: the link leads nowhere")

    def _image(self, entry: os.DirEntry[str], parts: tuple[str, ...]) -> SourceImage | None:
        uri = str(self.path.joinpath(*parts))
        if not is_text(uri):
            self._pass_over(uri, "its name is not valid UTF-8: rename it")
            return None
        try:
            status = entry.stat()
        except OSError as error:
            self._pass_over(uri, f"cannot be read: {_why(entry, error)}")
            return None
        if not S_ISREG(status.st_mode):
            self._pass_over(uri, "is no regular file")
            return None
        return SourceImage(
            id=nfc("/".join(parts)),
            uri=uri,
            label=first_folder(parts),
            stamp=f"{status.st_size}-{status.st_mtime_ns}",
        )

    def _folder_failed(self, folder: Path, parts: tuple[str, ...], error: OSError | ValueError) -> None:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if not parts:
            message = f"the folder {folder} cannot be read: {why}; check its permissions"
            raise SourceError(message, reason="SOURCE_UNREADABLE", source=folder) from error
        self._pass_over(str(folder), f"the folder cannot be read: {why}")

    def _pass_over(self, uri: str, reason: str) -> None:
        self.problems.append(ScanProblem(uri.encode(errors="backslashreplace").decode(), reason))


def _why(entry: os.DirEntry[str], error: OSError) -> str:
    """Say what is wrong with an entry: of links, what it is that they lead to."""
    try:
        if not entry.is_symlink():
            return error.strerror or str(error)
    except OSError:
        return error.strerror or str(error)
    reasons = {
        ENOENT: "the link leads nowhere",
        ELOOP: "the link leads to itself",
        ENOTDIR: "the link leads through a file as if it were a folder",
        EACCES: "the link leads where this user may not look",
    }
    return reasons.get(error.errno or 0, f"the link cannot be followed ({error.strerror})")
