"""A folder of images on another machine: the files below a prefix of a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from cbir.core.errors import SourceError
from cbir.core.files import nfc, remote_files
from cbir.indexer.sources.image import ScanProblem, SourceImage, first_folder, is_text
from cbir.indexer.sources.names import Chooser

__all__ = ["RemoteFolder"]


class RemoteFolder:
    """All image files below a prefix; the first folder is the label, as in a folder on disk."""

    def __init__(self, url: str, exclude: Sequence[str] = ()) -> None:
        self.url = url.rstrip("/")
        self.name = PurePosixPath(self.url).name
        self.names_ids = False
        self.problems: list[ScanProblem] = []
        self._exclude = tuple(exclude)

    def scan(self) -> Iterator[SourceImage]:
        """Find the images, folder by folder; see :class:`~cbir.indexer.sources.image.Source`."""
        self.problems = []
        chooser = Chooser(self._exclude)
        try:
            for uri, _, stamp in remote_files(self.url).walk(self.url):
                if not uri.startswith(f"{self.url}/"):
                    continue  # what is not below the prefix was not asked for
                parts = tuple(part for part in uri[len(self.url) + 1 :].split("/") if part)
                if not parts or not chooser.passes_whole(parts) or not chooser.is_image(parts[-1]):
                    continue
                if not is_text(uri) or ".." in parts or "!" in uri:
                    shown = uri.encode(errors="backslashreplace").decode()
                    self.problems.append(ScanProblem(shown, "its name cannot be used: rename it"))
                    continue
                yield SourceImage(nfc("/".join(parts)), uri, first_folder(parts), stamp)
        except OSError as error:
            message = f"{self.url} cannot be read: {error.strerror or error}"
            raise SourceError(message, reason="SOURCE_UNREADABLE", source=self.url) from error
        left_out = [ScanProblem(f"{self.url}/**/*{end}", why) for end, why in chooser.reasons().items()]
        self.problems[:0] = left_out
