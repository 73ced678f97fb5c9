"""The file of the gallery's table, ``images.parquet``, written and read a few thousand rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cbir.core.artifacts.gallery_image import GalleryImage
from cbir.core.errors import ArtifactError

__all__ = ["GALLERY_SCHEMA", "gallery_batches", "read_gallery", "write_gallery"]

#: Columns of ``images.parquet``.
GALLERY_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),
        ("label", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
        ("crop", pa.list_(pa.int32(), 4)),
        ("stamp", pa.string()),
        ("metadata", pa.map_(pa.string(), pa.string())),
    ]
)

#: Rows of images that are Python objects at a time, and rows of a row group of the file.
_PIECE = 8192
_GROUP = 16_384
#: Columns of which many rows have the same value; of others, a dictionary would be made in vain.
_REPEATED = ["label", "width", "height"]


def gallery_batches(images: Iterable[GalleryImage]) -> Iterator[Any]:
    """Record batches of the gallery's table, of images in id order, of which few are held at a time."""
    columns: dict[str, list[Any]] = {name: [] for name in GALLERY_SCHEMA.names}
    for image in images:
        for name in ("id", "uri", "label", "width", "height", "sha256", "phash", "stamp"):
            columns[name].append(getattr(image, name))
        columns["crop"].append([image.crop.left, image.crop.top, image.crop.right, image.crop.bottom])
        columns["metadata"].append(list(image.metadata.items()))
        if len(columns["id"]) == _PIECE:
            yield pa.record_batch(columns, schema=GALLERY_SCHEMA)
            columns = {name: [] for name in GALLERY_SCHEMA.names}
    if columns["id"]:
        yield pa.record_batch(columns, schema=GALLERY_SCHEMA)


def write_gallery(path: Path, batches: Iterable[Any]) -> None:
    """Write ``images.parquet`` from record batches, of which no more are held than a row group."""
    with pq.ParquetWriter(path, GALLERY_SCHEMA, compression="zstd", use_dictionary=_REPEATED) as writer:
        waiting: list[Any] = []
        rows = 0
        for batch in batches:
            waiting.append(batch)
            rows += batch.num_rows
            if rows >= _GROUP:
                table = pa.Table.from_batches(waiting, GALLERY_SCHEMA)
                whole = rows - rows % _GROUP
                writer.write_table(table.slice(0, whole), _GROUP)
                waiting, rows = table.slice(whole).to_batches(), rows - whole
        if rows:
            writer.write_table(pa.Table.from_batches(waiting, GALLERY_SCHEMA), _GROUP)


def read_gallery(path: Path, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Record batches of ``images.parquet``, read one after another.

    Args:
        columns: Names of those that are read; by default all.

    Raises:
        ArtifactError: It is no such file.
    """
    names = list(GALLERY_SCHEMA.names if columns is None else columns)
    schema = pa.schema([GALLERY_SCHEMA.field(name) for name in names])
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_PIECE, columns=names):
                yield pa.record_batch([batch.column(field.name).cast(field.type) for field in schema], schema=schema)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{path} is no readable Parquet file: run `cbir verify`, then index again", reason="INDEX_CORRUPT"
        ) from error
