"""The gallery: the facts about every indexed image, one row each, ordered by id (``images.parquet``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cbir.core.artifacts.gallery_file import GALLERY_SCHEMA, gallery_batches, write_gallery
from cbir.core.artifacts.gallery_image import GalleryImage
from cbir.core.artifacts.text_column import TextColumn
from cbir.core.errors import ArtifactError, QueryError, UnknownImageError
from cbir.core.files import nfc, read_uri
from cbir.core.images import Box

__all__ = ["Gallery"]

#: Text whose characters are more than 2 GB together needs offsets of 64 bits.
_TEXT = ("id", "uri", "label", "sha256", "stamp")
#: Rows of images that are Python objects at a time.
_PIECE = 8192
#: Rows of several tables that are put together at a time.
_TAKEN = 2**18


class Gallery:
    """All :class:`GalleryImage` of a version, stored by column; row numbers are those of the embeddings."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @classmethod
    def from_images(cls, images: Iterable[GalleryImage]) -> Gallery:
        """Build from images, which must come in id order."""
        return cls(pa.Table.from_batches(list(gallery_batches(images)), GALLERY_SCHEMA))

    @classmethod
    def read(cls, path: Path) -> Gallery:
        """Read ``images.parquet``."""
        try:
            table = pq.read_table(path, memory_map=True)
        except (OSError, pa.ArrowException) as error:
            raise ArtifactError(
                f"{path} is no readable Parquet file: run `cbir verify`, then index again", reason="INDEX_CORRUPT"
            ) from error
        return cls(table.cast(GALLERY_SCHEMA))

    @classmethod
    def joined(cls, tables: Sequence[Gallery], places: NDArray[np.integer]) -> Gallery:
        """The rows at (N,) places, counted through all tables."""
        columns = []
        for field in GALLERY_SCHEMA:
            column = pa.chunked_array([c for part in tables for c in part._table.column(field.name).chunks], field.type)
            whole = (column.cast(pa.large_string()) if field.name in _TEXT else column).combine_chunks()
            # In pieces whose text has offsets of 32 bits, as in the file.
            pieces = (places[start : start + _TAKEN] for start in range(0, len(places), _TAKEN))
            taken = [whole.take(pa.array(piece)).cast(field.type) for piece in pieces]
            columns.append(pa.chunked_array(taken, field.type))
        return cls(pa.table(columns, GALLERY_SCHEMA))

    def write(self, path: Path, stays: NDArray[np.bool_] | None = None) -> None:
        """Write ``images.parquet``.

        Args:
            stays: Nothing: all rows are written.
        """
        write_gallery(path, self._table.to_batches())

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, row: int) -> GalleryImage:
        # Reading the cells one by one is faster than slicing the table.
        cell = {name: self._columns[name][row].as_py() for name in GALLERY_SCHEMA.names}
        return GalleryImage(**{**cell, "crop": Box(*cell["crop"]), "metadata": dict(cell["metadata"])})

    def images(self) -> Iterator[GalleryImage]:
        """All images in row order; faster than asking for row after row."""
        for batch in self._table.to_batches(_PIECE):
            for cell in batch.to_pylist():
                yield GalleryImage(**{**cell, "crop": Box(*cell["crop"]), "metadata": dict(cell["metadata"])})

    @cached_property
    def _columns(self) -> dict[str, Any]:
        columns = {}
        for name in GALLERY_SCHEMA.names:
            column = self._table.column(name)
            # In one piece; cells of several pieces are found more slowly.
            columns[name] = (column.cast(pa.large_string()) if name in _TEXT else column).combine_chunks()
        return columns

    @cached_property
    def ids(self) -> TextColumn:
        """Every id, in row order."""
        return TextColumn(self._columns["id"])

    @cached_property
    def _spellings(self) -> tuple[TextColumn, NDArray[np.int64]]:
        """The ids in one spelling: callers, and galleries made before, may spell accents in two ways."""
        return self.ids.respelt()

    @cached_property
    def _hashes(self) -> TextColumn:
        return TextColumn(self._columns["sha256"])

    @cached_property
    def _label_table(self) -> tuple[list[str], NDArray[np.int32]]:
        encoded = self._columns["label"].dictionary_encode()
        names = encoded.dictionary.to_pylist()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        order = sorted(range(len(names)), key=names.__getitem__)
        place = np.empty(len(names) + 1, np.int32)
        place[order] = np.arange(len(names), dtype=np.int32)
        place[-1] = -1
        return [names[i] for i in order], place[codes]

    @property
    def labels(self) -> list[str]:
        """The distinct labels, sorted."""
        return self._label_table[0]

    @property
    def label_codes(self) -> NDArray[np.int32]:
        """(N,) position of each image's label in :attr:`labels`, -1 without a label."""
        return self._label_table[1]

    @cached_property
    def phashes(self) -> NDArray[np.uint64]:
        """(N,) perceptual hashes."""
        return cast("NDArray[np.uint64]", self._columns["phash"].to_numpy(zero_copy_only=False))

    def sha256(self, row: int) -> str:
        """The digest of the bytes of one image."""
        return cast(str, self._columns["sha256"][row].as_py())

    def uri(self, row: int) -> str:
        """Where the indexer found one image; see :mod:`cbir.core.files.uri`."""
        return cast(str, self._columns["uri"][row].as_py())

    def label(self, row: int) -> str | None:
        """The label of one image."""
        code = int(self.label_codes[row])
        return None if code < 0 else self.labels[code]

    def metadata(self, row: int) -> dict[str, str]:
        """The further columns of one image."""
        # Most galleries have none, and reading an empty map takes as long as reading all the rest.
        if self._metadata_ends[row] == self._metadata_ends[row + 1]:
            return {}
        return dict(self._columns["metadata"][row].as_py())

    def row(self, image_id: str) -> int:
        """The row of an id.

        Raises:
            UnknownImageError: There is no such image.
        """
        found = self.ids.rows_of(image_id)
        if not found and not image_id.isascii():
            names, rows = self._spellings
            found = [int(rows[place]) for place in names.rows_of(nfc(image_id))]
        if not found:
            raise UnknownImageError(
                f"the gallery holds no image {image_id!r}: ids are as the indexer listed them (see images.parquet)",
                reason="UNKNOWN_IMAGE_ID",
                image_id=image_id,
            )
        return found[-1]

    def prepare(self) -> None:
        """Make the tables that :meth:`row` and :meth:`rows_with_sha256` would make at their first call."""
        self.row(self.ids[0])
        self.rows_with_sha256("")

    def rows_with_sha256(self, digest: str) -> list[int]:
        """The rows of the images whose file has this hexadecimal digest."""
        return self._hashes.rows_of(digest)

    def read_bytes(self, row: int) -> bytes:
        """The bytes of an image file, read from where the indexer found it."""
        return read_uri(self.uri(row))

    def mask(
        self,
        labels: Sequence[str] = (),
        exclude_labels: Sequence[str] = (),
        metadata: Mapping[str, Sequence[str]] | None = None,
    ) -> NDArray[np.bool_] | None:
        """(N,) which images meet all conditions, or None without any condition.

        Raises:
            QueryError: ``BAD_FILTER``: a label or metadata column that no image has.
        """
        mask: NDArray[np.bool_] | None = None
        for names, wanted in ((labels, True), (exclude_labels, False)):
            if not names:
                continue
            found = np.isin(self.label_codes, self.codes_of(names)) == wanted
            mask = found if mask is None else mask & found
        for key, values in (metadata or {}).items():
            column = self._metadata_column(key)
            found = np.asarray(
                pc.is_in(column, value_set=pa.array(list(values), pa.string())).to_numpy(zero_copy_only=False), bool
            )
            mask = found if mask is None else mask & found
        return mask

    def codes_of(self, names: Sequence[str]) -> list[int]:
        """The numbers of the labels of these names, however their accents are spelt.

        Raises:
            QueryError: ``BAD_FILTER``: a label that no image has.
        """
        found: list[int] = []
        for name in names:
            codes = self._codes.get(nfc(name))
            if codes is None:
                raise QueryError(
                    f"the filter names the label {name!r}, which no image of the gallery has",
                    reason="BAD_FILTER",
                    label=name,
                )
            found += codes
        return found

    @cached_property
    def _codes(self) -> dict[str, list[int]]:
        place: dict[str, list[int]] = {}
        for code, label in enumerate(self.labels):
            place.setdefault(nfc(label), []).append(code)
        return place

    def _metadata_column(self, key: str) -> Any:
        if key not in self._metadata:
            values = pc.map_lookup(self._columns["metadata"], pa.scalar(key), "first")
            if values.null_count == len(values):
                raise QueryError(
                    f"the filter names the metadata column {key!r}, which no image of the gallery has",
                    reason="BAD_FILTER",
                    column=key,
                )
            self._metadata[key] = values
        return self._metadata[key]

    def metadata_counts(self, columns: int, values: int) -> dict[str, tuple[tuple[tuple[str, int], ...], int]]:
        """By metadata column: its most frequent values with the number of images of each, and how many there are.

        Args:
            columns: Most columns, the first by name.
            values: Most values of a column, those of most images first.
        """
        entries = self._columns["metadata"]
        pairs = pa.table({"column": entries.keys, "value": entries.items})
        counted = pairs.group_by(["column", "value"]).aggregate([([], "count_all")])
        found: dict[str, tuple[tuple[tuple[str, int], ...], int]] = {}
        for column in sorted(pc.unique(counted["column"]).to_pylist())[:columns]:
            own = counted.filter(pc.equal(counted["column"], column))
            first = own.sort_by([("count_all", "descending"), ("value", "ascending")]).slice(0, values)
            pairs_of = zip(first["value"].to_pylist(), first["count_all"].to_pylist(), strict=True)
            found[column] = (tuple(pairs_of), own.num_rows)
        return found

    @cached_property
    def _metadata_ends(self) -> NDArray[np.int32]:
        column = self._columns["metadata"]
        return cast("NDArray[np.int32]", column.offsets.to_numpy(zero_copy_only=False))

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        return {}
