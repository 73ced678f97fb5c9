"""A folder of images; the first sub-folder is the label."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from cbir.core.files import nfc
from cbir.indexer.sources.image import ScanProblem, SourceImage, first_folder
from cbir.indexer.sources.walk import FolderPiece, FolderWalk

__all__ = ["FolderSource"]


class FolderSource:
    """All image files at any depth below a folder.

    Hidden files and folders, and those of the system, are ignored.  Links are followed; a folder that is reached
    twice, as in a loop of links, is read once.  Nothing that lies in the folder ends a scan: what cannot be looked at
    is passed over and told.

    Attributes:
        stamp: Of all that the last :meth:`scan` found, once it has ended.
    """

    def __init__(self, path: Path, exclude: Sequence[str] = ()) -> None:
        self.path = path
        self.name = path.name or "root"
        self.names_ids = False
        self.problems: list[ScanProblem] = []
        self.stamp = ""
        self._exclude = tuple(exclude)
        self._walked: _Walked | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_walked": None}

    def look(self) -> str:
        """The stamp as it is now; the next :meth:`scan` finds what was found here, and does not look again.

        Raises:
            SourceError: The folder cannot be read.
        """
        walk = FolderWalk(self.path, self._exclude)
        self._walked = _Walked.of(walk)
        return walk.stamp

    def forget(self) -> None:
        """Let go of what :meth:`look` found."""
        self._walked = None

    def scan(self) -> Iterator[SourceImage]:
        """Find the images, folder by folder; see :class:`~cbir.indexer.sources.image.Source`."""
        self.problems, self.stamp = [], ""
        walk, pieces = self._pieces()
        for piece in pieces:
            folder, inner = self.path.joinpath(*piece.parts, "-"), "/".join((*piece.parts, ""))
            above, label = str(folder)[:-1], first_folder((*piece.parts, ""))
            for name, size, time in zip(piece.names, piece.sizes, piece.times, strict=True):
                yield SourceImage(nfc(inner + name), above + name, label, f"{size}-{time}")
        self.problems, self.stamp = walk.problems, walk.stamp

    def _pieces(self) -> tuple[FolderWalk, Iterable[FolderPiece]]:
        walked, self._walked = self._walked, None
        if walked is not None:
            return walked.walk, walked.pieces()
        walk = FolderWalk(self.path, self._exclude)
        return walk, walk


class _Walked:
    """A walk that has ended, with what it found in a file without a name."""

    def __init__(self, walk: FolderWalk, file: IO[bytes]) -> None:
        self.walk, self._file = walk, file

    def __del__(self) -> None:
        self._file.close()

    @classmethod
    def of(cls, walk: FolderWalk) -> _Walked | None:
        """Walk to the end; None where there is no room for what was found."""
        pieces = iter(walk)
        try:
            walked = cls(walk, tempfile.TemporaryFile())  # noqa: SIM115 - closed when it is let go of
            for piece in pieces:
                pickle.dump(piece, walked._file)
            walked._file.flush()
        except OSError:
            for _ in pieces:
                pass
            return None
        return walked

    def pieces(self) -> Iterator[FolderPiece]:
        """What the walk found."""
        self._file.seek(0)
        while True:
            try:
                yield pickle.load(self._file)  # noqa: S301 - written by this process, and nobody else can reach it
            except EOFError:
                return
