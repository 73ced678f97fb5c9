"""Files stored in the rows of a table: Parquet and Arrow files with a column of bytes, as data sets are published.

A row is addressed as ``<file>!/<row>``.  Readers and what they hold are bounded: a group of rows is read whole.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["TABLE_SUFFIXES", "RowTable", "is_image_column", "row_table"]

TABLE_SUFFIXES = (".parquet", ".arrow")
#: Names of columns that hold files, the most usual first.
_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
#: Largest group of rows that is read into memory, in bytes.
_LARGEST_GROUP = 2**30
#: Tables that are kept open.
_KEPT = 8


def is_image_column(kind: Any) -> bool:
    """Whether a column of this Arrow type holds files: bytes, or Hugging Face's structure of bytes and path."""
    import pyarrow as pa

    types = pa.types
    if types.is_struct(kind):
        names = {kind.field(place).name: kind.field(place).type for place in range(kind.num_fields)}
        return "bytes" in names and is_image_column(names["bytes"])
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


class RowTable:
    """A Parquet or Arrow file of which one column holds files.

    Attributes:
        column: That column.
        schema: Of the file.
        rows: Number of rows.

    Raises:
        ValueError: It has no such column, or a group of rows that is too large to be read.
        OSError, pyarrow.ArrowException: It cannot be read.
    """

    def __init__(self, file: Any, *, parquet: bool) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._lock = threading.Lock()
        self._group: tuple[int, Any] | None = None
        self._parquet: Any = None
        self._batches: list[Any] = []
        if parquet:
            self._parquet = pq.ParquetFile(file)
            self.schema = self._parquet.schema_arrow
            meta = self._parquet.metadata
            sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
            largest = max((meta.row_group(group).total_byte_size for group in range(meta.num_row_groups)), default=0)
            if largest > _LARGEST_GROUP:
                raise ValueError(f"a group of its rows has {largest:,} bytes, more than {_LARGEST_GROUP:,}")
        else:
            source = pa.memory_map(str(file)) if isinstance(file, Path) else file
            try:
                reader = pa.ipc.open_stream(source)
                self._batches = list(reader)
            except pa.ArrowInvalid:
                source.seek(0)
                reader = pa.ipc.open_file(source)
                self._batches = [reader.get_batch(place) for place in range(reader.num_record_batches)]
            self.schema = reader.schema
            sizes = [batch.num_rows for batch in self._batches]
        self._starts = [0]
        for size in sizes:
            self._starts.append(self._starts[-1] + size)
        self.rows = self._starts[-1]
        named = [name for name in _COLUMNS if name in self.schema.names]
        others = [field.name for field in self.schema if field.name not in named]
        found = [name for name in (*named, *others) if is_image_column(self.schema.field(name).type)]
        if not found:
            raise ValueError("it has no column of images")
        self.column = found[0]

    def cells(self, columns: Sequence[str], rows: int) -> Iterator[Any]:
        """Record batches of some columns, of at most ``rows`` rows each."""
        if self._parquet is not None:
            yield from self._parquet.iter_batches(rows, columns=list(columns))
            return
        for batch in self._batches:
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows).select(list(columns))

    def read(self, row: int, most: int) -> bytes:
        """The file in a row; of one that is longer than ``most`` bytes, one byte more than that."""
        from bisect import bisect_right

        if not 0 <= row < self.rows:
            raise ValueError(f"it has {self.rows} rows and no row {row}")
        group = bisect_right(self._starts, row) - 1
        with self._lock:
            if self._parquet is None:
                column = self._batches[group].column(self.column)
            else:
                if self._group is None or self._group[0] != group:
                    self._group = group, self._parquet.read_row_group(group, columns=[self.column]).column(0)
                column = self._group[1]
        cell = column[row - self._starts[group]]
        if hasattr(cell, "keys"):
            cell = cell["bytes"]
        buffer = cell.as_buffer()
        if buffer is None:
            raise ValueError(f"row {row} holds no image")
        return memoryview(buffer)[: most + 1].tobytes()


_lock = threading.Lock()
_tables: OrderedDict[tuple[str, str], RowTable] = OrderedDict()


def row_table(path: Path) -> RowTable:
    """The table of a local file; the last few are kept, and read again when the file changes."""
    status = path.stat()
    key = (str(path), f"{status.st_size}-{status.st_mtime_ns}")
    with _lock:
        table = _tables.pop(key, None)
    if table is None:
        table = RowTable(path, parquet=path.suffix.lower() == ".parquet")
    with _lock:
        _tables[key] = table
        while len(_tables) > _KEPT:
            _tables.popitem(last=False)
    return table
