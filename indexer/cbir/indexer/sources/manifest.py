"""A table of images: CSV, TSV or Parquet with a ``path`` column."""

from __future__ import annotations

import csv
import posixpath
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from stat import S_ISREG

from cbir.core.errors import SourceError
from cbir.core.files import Spellings, archive_members, member_uri, nfc, split_uri
from cbir.indexer.sources.image import ScanProblem, SourceImage, is_text, member_stamp, tidy_label
from cbir.indexer.sources.names import Chooser
from cbir.indexer.sources.parquet import ParquetTable

__all__ = ["ManifestSource"]

#: The largest cell of a CSV manifest in characters; Python's own default of 131,072 is short for long captions.
_MAX_CELL = 2**24
#: Names that pandas gives to columns without one, and to its row numbers.
_UNNAMED = re.compile(r"Unnamed: \d+|__index_level_\d+__")


class ManifestSource:
    """Images listed in a table.

    Columns: ``path`` (relative to the manifest, absolute, or a member of an archive as ``photos.zip!/cat/1.jpg``),
    optional ``label`` and ``id``; every further column of text, numbers or dates becomes metadata.  Columns without a
    name, as pandas writes its row numbers, and empty cells are left out.
    """

    def __init__(self, path: Path, exclude: Sequence[str] = ()) -> None:
        self.path = path
        self.name = path.stem
        self.problems: list[ScanProblem] = []
        self.names_ids = False
        self._exclude = tuple(exclude)

    def scan(self) -> Iterator[SourceImage]:
        """Find the images in the table's order; see :class:`~cbir.indexer.sources.image.Source`."""
        self.problems = []
        chooser, spellings = Chooser(self._exclude), Spellings()
        rows = self._parquet() if self.path.suffix.lower() == ".parquet" else self._csv()
        for place, row in rows:
            image = self._image(place, row, chooser, spellings)
            if image is not None:
                yield image

    def _image(self, place: str, row: dict[str, str], chooser: Chooser, spellings: Spellings) -> SourceImage | None:
        path = row.pop("path", "")
        if not path:
            self.problems.append(ScanProblem(place, "the path is empty"))
            return None
        if not is_text(path) or "\0" in path:
            self.problems.append(ScanProblem(place, "the path is not valid text"))
            return None
        if chooser.excludes([part for part in posixpath.normpath(path).split("/") if part not in ("", "..")]):
            return None
        file, member = split_uri(posixpath.join(self.path.parent.as_posix(), path))
        file = spellings.on_disk(Path(posixpath.normpath(file)))
        try:
            stamp, member = _stamp(file, member)
        except FileNotFoundError:
            uri = str(file) if member is None else member_uri(file, member)
            self.problems.append(ScanProblem(uri, f"there is no such file (named in {place})"))
            return None
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile, tarfile.TarError) as error:
            uri = str(file) if member is None else member_uri(file, member)
            self.problems.append(ScanProblem(uri, f"cannot be read: {error}"))
            return None
        return SourceImage(
            id=nfc(row.pop("id", "") or posixpath.normpath(path)),
            uri=str(file) if member is None else member_uri(file, member),
            label=tidy_label(row.pop("label", "")) or None,
            stamp=stamp,
            metadata=row,
        )

    def _csv(self) -> Iterator[tuple[str, dict[str, str]]]:
        delimiter = "\t" if self.path.suffix.lower() == ".tsv" else ","
        csv.field_size_limit(_MAX_CELL)
        line = 0
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, delimiter=delimiter, strict=True)
                names = [name.strip() for name in next((row for row in reader if any(row)), [])]
                wanted = self._columns(names)
                for row in reader:
                    line = reader.line_num
                    cells = [cell.strip() for cell in row]
                    if any(cells[len(names) :]):
                        raise self._malformed(f"line {line} has more cells than the header")
                    found = {name: cell for name, cell in zip(names, cells, strict=False) if cell and name in wanted}
                    if any(cells):
                        yield f"{self.path} line {line}", found
        except UnicodeDecodeError as error:
            raise self._malformed("it is not UTF-8; save it as UTF-8") from error
        except csv.Error as error:
            raise self._malformed(f"line {reader.line_num}: {error}") from error
        except OSError as error:
            raise self._unreadable(error) from error

    def _parquet(self) -> Iterator[tuple[str, dict[str, str]]]:
        # Imported here: it takes a third of a second, and most sources are folders.
        import pyarrow as pa

        try:
            with ParquetTable(self.path) as table:
                wanted = self._columns(table.names)
                for name, why in table.left_out.items():
                    if name in wanted:
                        self.problems.append(ScanProblem(f"{self.path} column {name}", f"it is left out: {why}"))
                for number, row in enumerate(table.rows(wanted), 1):
                    yield f"{self.path} row {number}", row
        except pa.ArrowException as error:
            raise self._malformed(f"it is no Parquet file ({error})") from error
        except OSError as error:
            raise self._unreadable(error) from error

    def _columns(self, names: Sequence[str]) -> list[str]:
        """Check the header; return the columns that are of use."""
        wanted = [name for name in names if name and not _UNNAMED.fullmatch(name)]
        if "path" not in wanted:
            listed = ", ".join(wanted) or "none"
            raise self._malformed(f"it has no column 'path' (its columns: {listed}); name the image files in one")
        double = sorted({name for name in wanted if wanted.count(name) > 1})
        if double:
            raise self._malformed(f"it has two columns '{double[0]}'; rename one")
        self.names_ids = "id" in wanted
        return wanted

    def _malformed(self, why: str) -> SourceError:
        message = f"the manifest {self.path} cannot be used: {why}"
        return SourceError(message, reason="SOURCE_FORMAT", source=self.path)

    def _unreadable(self, error: OSError) -> SourceError:
        message = f"the manifest {self.path} cannot be read: {error.strerror or error}"
        return SourceError(message, reason="SOURCE_UNREADABLE", source=self.path)


def _stamp(path: Path, member: str | None) -> tuple[str, str | None]:
    """The stamp of a file or member, and the member's name as the archive spells it."""
    status = path.stat()
    if not S_ISREG(status.st_mode):
        raise OSError("it is no regular file")
    if member is None:
        return f"{status.st_size}-{status.st_mtime_ns}", None
    entry = archive_members(path).find(member)
    if entry is None:
        raise FileNotFoundError(member)
    return member_stamp(str(status.st_mtime_ns), entry), entry.name
