"""Tables that hold the images themselves: Parquet with a column of bytes, and the Arrow files of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cbir.core.errors import SourceError
from cbir.core.files import RowTable, is_image_column, member_uri, nfc
from cbir.indexer.sources.image import ScanProblem, SourceImage, is_text, tidy_label
from cbir.indexer.sources.parquet import cell_text
from cbir.indexer.sources.place import LocalPlace, Place

__all__ = ["TableSource", "holds_images"]

_ROWS = 1024
#: Columns that name a row, the first of them that is there.
_IDS = ("id", "key", "__key__")


def holds_images(path: Path) -> bool:
    """Whether a Parquet file has a column of images and none that names files: it is then no manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return False
    return "path" not in schema.names and any(is_image_column(field.type) for field in schema)


class TableSource:
    """The images in the rows of one table.

    A row's id is its column ``id`` or ``key``, else its number; ``label`` names its class, by the names that a Hugging
    Face feature gives to numbers; other columns of text, numbers and dates are metadata.
    """

    def __init__(self, path: Path | Place, exclude: Sequence[str] = ()) -> None:
        self.place: Place = LocalPlace(path) if isinstance(path, Path) else path
        self.name = PurePosixPath(self.place.name).stem
        self.names_ids = False
        self.problems: list[ScanProblem] = []
        self._exclude = tuple(exclude)

    def scan(self) -> Iterator[SourceImage]:
        """Find the images in the table's order; see :class:`~cbir.indexer.sources.image.Source`."""
        import pyarrow as pa

        self.problems = []
        try:
            table, mark = self.place.table(), self.place.stamp()
            yield from self._rows(table, mark)
        except (pa.ArrowException, ValueError, EOFError) as error:
            message = f"{self.place.uri} cannot be used as a table of images: {error}"
            raise SourceError(message, reason="SOURCE_FORMAT", source=self.place.uri) from error
        except OSError as error:
            message = f"{self.place.uri} cannot be read: {error.strerror or error}"
            raise SourceError(message, reason="SOURCE_UNREADABLE", source=self.place.uri) from error

    def _rows(self, table: RowTable, mark: str) -> Iterator[SourceImage]:
        named = next((name for name in _IDS if name in table.schema.names), None)
        classes = _class_names(table.schema)
        told = [field.name for field in table.schema if field.name != table.column and _is_plain(field.type)]
        number = 0
        for rows in (batch.to_pylist() for batch in table.cells(told, _ROWS)) if told else _nothing(table.rows):
            for row in rows:
                uri = member_uri(self.place.uri, str(number))
                cells = {name: cell_text(value) for name, value in row.items()}
                cells = {name: cell for name, cell in cells.items() if cell}
                name = cells.pop(named, "") if named else ""
                if not is_text(name):
                    self.problems.append(ScanProblem(uri, "its id is not valid text"))
                    name = ""
                label = cells.pop("label", "")
                if label.isdecimal() and int(label) < len(classes):
                    label = classes[int(label)]
                yield SourceImage(
                    nfc(name) or f"{number:09}", uri, tidy_label(label) or None, f"{mark}-{number}", cells
                )
                number += 1


def _nothing(count: int) -> Iterator[list[dict[str, Any]]]:
    """So many rows that say nothing."""
    for start in range(0, count, _ROWS):
        yield [{}] * min(_ROWS, count - start)


def _is_plain(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
                or pa.types.is_fixed_size_binary(kind))  # fmt: skip


def _class_names(schema: Any) -> list[str]:
    """What the numbers in ``label`` stand for, as Hugging Face writes it beside the table."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
