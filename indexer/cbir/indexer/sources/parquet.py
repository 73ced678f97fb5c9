"""The columns of a Parquet file that say something in words: text, numbers and dates, and text stored as bytes."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ParquetTable"]

#: Columns that name and label images: bytes in them are text, or the file cannot be used.
_TEXT = ("path", "label", "id")
#: A column whose values have more bytes than this on average is no text, whatever they are.
_MOST_BYTES = 1024
#: Rows that are held at once while columns of bytes are looked at, or read beside them.
_ROWS = 1024


class ParquetTable:
    """A Parquet file as rows of text.

    Attributes:
        names: Its columns.
        left_out: Columns that are not text -> why.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._file: Any = pq.ParquetFile(path)
        schema = self._file.schema_arrow
        self.names: list[str] = list(schema.names)
        self.left_out: dict[str, str] = {}
        for column in schema:
            if why := self._why_not(column):
                self.left_out[column.name] = why

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, str]]:
        """Yield the cells of each row that hold something, as text.

        Raises:
            pyarrow.ArrowException, OSError: The file is damaged.
        """
        wanted = [name for name in columns if name not in self.left_out]
        for batch in self._file.iter_batches(batch_size=_ROWS, columns=wanted):
            for row in batch.to_pylist():
                cells = {name: cell_text(value) for name, value in row.items()}
                yield {name: cell for name, cell in cells.items() if cell}

    def _why_not(self, column: pa.Field) -> str | None:
        import pyarrow as pa

        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        if pa.types.is_nested(kind):
            return "its values are lists or structures"
        if not _is_bytes(kind) or column.name in _TEXT:
            return None
        if pa.types.is_fixed_size_binary(kind) or not self._holds_text(column.name):
            return "it holds bytes that are no text"
        return None

    def _holds_text(self, name: str) -> bool:
        """Whether all values of a column of bytes are short and text, as writers store it that know no text."""
        meta = self._file.metadata
        leaves = [place for place in range(meta.num_columns) if meta.schema.column(place).path == name]
        groups = range(meta.num_row_groups)
        size = sum(meta.row_group(group).column(place).total_uncompressed_size for place in leaves for group in groups)
        if size > _MOST_BYTES * max(meta.num_rows, 1):
            return False
        for batch in self._file.iter_batches(batch_size=_ROWS, columns=[name]):
            if not all(value is None or _is_text(value) for value in batch.column(0).to_pylist()):
                return False
        return True


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def _is_text(value: bytes) -> bool:
    if len(value) > 16 * _MOST_BYTES:
        return False
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all(letter in "\t\r\n" or unicodedata.category(letter) != "Cc" for letter in text)


def cell_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace").strip()
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        # A whole-number column that pandas turned to floats because a cell was empty.
        if value.is_integer():
            return str(int(value))
    return str(value).strip()
