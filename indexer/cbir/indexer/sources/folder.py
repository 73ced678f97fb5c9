"""A folder of images; the first sub-folder on an image's path is its label."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG

from cbir.core.errors import SourceError
from cbir.core.files import read_uri
from cbir.indexer.sources.image import ScanProblem, SourceImage, first_folder, is_hidden, is_image_name, is_text

__all__ = ["FolderSource"]


class FolderSource:
    """All image files at any depth below a folder.

    Hidden files and folders are ignored.  Links are followed; a folder that is reached twice, as in a loop of
    links, is read once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name or "root"
        self.names_ids = False
        self.problems: list[ScanProblem] = []

    def scan(self) -> Iterator[SourceImage]:
        """Find the images, sorted by id; see :class:`~cbir.indexer.sources.image.Source`."""
        self.problems = []
        yield from sorted(self._walk(), key=lambda image: image.id)

    def read(self, image: SourceImage) -> bytes:
        """Return the bytes of an image; see :class:`~cbir.indexer.sources.image.Source`."""
        return read_uri(image.uri)

    def _walk(self) -> Iterator[SourceImage]:
        # Linked folders are read after all real ones, so that the images of a folder get their ids from its own path
        # and not from that of a link.
        real: deque[tuple[str, ...]] = deque([()])
        linked: deque[tuple[str, ...]] = deque()
        seen: set[tuple[int, int]] = set()
        while real or linked:
            parts = real.popleft() if real else linked.popleft()
            folder = self.path.joinpath(*parts)
            try:
                status = folder.stat()
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except OSError as error:
                self._folder_failed(folder, parts, error)
                continue
            for entry in entries:
                path = (*parts, entry.name)
                if is_hidden((entry.name,)):
                    continue
                if entry.is_dir():
                    (linked if entry.is_symlink() else real).append(path)
                elif is_image_name(entry.name) and (image := self._image(entry, path)) is not None:
                    yield image

    def _image(self, entry: os.DirEntry[str], parts: tuple[str, ...]) -> SourceImage | None:
        uri = str(self.path.joinpath(*parts))
        if not is_text(uri):
            self._pass_over(uri, "its name is not valid UTF-8: rename it")
            return None
        try:
            status = entry.stat()
        except OSError as error:
            why = "the link leads nowhere" if entry.is_symlink() else error.strerror
            self._pass_over(uri, f"cannot be read: {why}")
            return None
        if not S_ISREG(status.st_mode):
            self._pass_over(uri, "is no regular file")
            return None
        return SourceImage(
            id="/".join(parts),
            uri=uri,
            label=first_folder(parts),
            stamp=f"{status.st_size}-{status.st_mtime_ns}",
        )

    def _folder_failed(self, folder: Path, parts: tuple[str, ...], error: OSError) -> None:
        if not parts:
            message = f"the folder {folder} cannot be read: {error.strerror}; check its permissions"
            raise SourceError(message, reason="SOURCE_UNREADABLE", source=folder) from error
        self._pass_over(str(folder), f"the folder cannot be read: {error.strerror}")

    def _pass_over(self, uri: str, reason: str) -> None:
        self.problems.append(ScanProblem(uri.encode(errors="backslashreplace").decode(), reason))
