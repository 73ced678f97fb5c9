"""A table of images: CSV, TSV or Parquet with a ``path`` column."""

from __future__ import annotations

import csv
import math
import posixpath
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG

from cbir.core.errors import SourceError
from cbir.core.files import archive_members, member_uri, read_uri, split_uri
from cbir.indexer.sources.image import ScanProblem, SourceImage, is_text, member_stamp

__all__ = ["ManifestSource"]

#: Most characters in a cell of a CSV manifest; Python's default of 131,072 is too few for long captions.
_MAX_CELL = 2**24


class ManifestSource:
    """Images listed in a table.

    Columns: ``path`` (relative to the manifest, absolute, or a member of an archive as ``photos.zip!/cat/1.jpg``),
    optional ``label`` and ``id``; all other columns are metadata.  Empty cells are left out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        self.problems: list[ScanProblem] = []
        self.names_ids = False

    def scan(self) -> Iterator[SourceImage]:
        """Find the images in the table's order; see :class:`~cbir.indexer.sources.image.Source`."""
        self.problems = []
        rows = self._parquet() if self.path.suffix.lower() == ".parquet" else self._csv()
        for place, row in rows:
            image = self._image(place, row)
            if image is not None:
                yield image

    def read(self, image: SourceImage) -> bytes:
        """Return the bytes of an image; see :class:`~cbir.indexer.sources.image.Source`."""
        return read_uri(image.uri)

    def _image(self, place: str, row: dict[str, str]) -> SourceImage | None:
        path = row.pop("path", "")
        if not path:
            self.problems.append(ScanProblem(place, "the path is empty"))
            return None
        if not is_text(path) or "\0" in path:
            self.problems.append(ScanProblem(place, "the path is not valid text"))
            return None
        file, member = split_uri(posixpath.join(self.path.parent.as_posix(), path))
        file = Path(posixpath.normpath(file))
        uri = str(file) if member is None else member_uri(file, member)
        try:
            stamp = _stamp(file, member)
        except FileNotFoundError:
            self.problems.append(ScanProblem(uri, f"there is no such file (named in {place})"))
            return None
        except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
            self.problems.append(ScanProblem(uri, f"cannot be read: {error}"))
            return None
        image_id = row.pop("id", "") or posixpath.normpath(path)
        label = row.pop("label", "") or None
        return SourceImage(id=image_id, uri=uri, label=label, stamp=stamp, metadata=row)

    def _csv(self) -> Iterator[tuple[str, dict[str, str]]]:
        delimiter = "\t" if self.path.suffix.lower() == ".tsv" else ","
        csv.field_size_limit(_MAX_CELL)
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, delimiter=delimiter, restkey="", restval="", strict=True)
                reader.fieldnames = self._columns([name.strip() for name in reader.fieldnames or ()])
                for row in reader:
                    place = f"{self.path} line {reader.line_num}"
                    if row.pop("", None):
                        raise self._malformed(f"line {reader.line_num} has more cells than the header")
                    yield place, {name: cell.strip() for name, cell in row.items() if cell.strip()}
        except UnicodeDecodeError as error:
            raise self._malformed("it is not UTF-8; save it as UTF-8") from error
        except csv.Error as error:
            raise self._malformed(f"line {reader.reader.line_num}: {error}") from error
        except OSError as error:
            raise self._unreadable(error) from error

    def _parquet(self) -> Iterator[tuple[str, dict[str, str]]]:
        # Imported here because it takes a third of a second and most sources are folders.
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                # Columns of bytes and nested values are left out: they cannot be displayed or filtered by.
                columns = [
                    column.name
                    for column in file.schema_arrow
                    if not pa.types.is_nested(column.type) and not pa.types.is_binary(column.type)
                ]
                number = 0
                for batch in file.iter_batches(columns=self._columns(columns)):
                    for row in batch.to_pylist():
                        number += 1
                        cells = {name: _text(value) for name, value in row.items()}
                        yield f"{self.path} row {number}", {name: cell for name, cell in cells.items() if cell}
        except pa.ArrowException as error:
            raise self._malformed(f"it is no Parquet file ({error})") from error
        except OSError as error:
            raise self._unreadable(error) from error

    def _columns(self, names: list[str]) -> list[str]:
        """Check the header."""
        if "path" not in names:
            listed = ", ".join(names) or "none"
            raise self._malformed(f"it has no column 'path' (its columns: {listed}); name the image files in one")
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise self._malformed(f"it has two columns '{double[0]}'; rename one")
        self.names_ids = "id" in names
        return names

    def _malformed(self, why: str) -> SourceError:
        message = f"the manifest {self.path} cannot be used: {why}"
        return SourceError(message, reason="SOURCE_FORMAT", source=self.path)

    def _unreadable(self, error: OSError) -> SourceError:
        message = f"the manifest {self.path} cannot be read: {error.strerror or error}"
        return SourceError(message, reason="SOURCE_UNREADABLE", source=self.path)


def _stamp(path: Path, member: str | None) -> str:
    status = path.stat()
    if not S_ISREG(status.st_mode):
        raise OSError("it is no regular file")
    if member is None:
        return f"{status.st_size}-{status.st_mtime_ns}"
    entry = archive_members(path).get(member)
    if entry is None:
        raise FileNotFoundError(member)
    return member_stamp(path, entry)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        # An integer column that pandas stored as floats because a cell was empty.
        if value.is_integer():
            return str(int(value))
    return str(value).strip()
