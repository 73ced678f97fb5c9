"""What a collection of ours looks like: its fields, how it is made and filled, and how it is told from others."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import Gallery
from cbir.core.errors import ArtifactError, ConfigurationError
from cbir.core.files import write_durably
from cbir.core.milvus.connection import MilvusConnection
from cbir.core.milvus.filters import facets, rows_in

__all__ = ["NAME", "Collection", "alias_of", "is_of", "member_field"]

#: Format of the collections that this program makes and reads.
_FORMAT = 1
#: Names of our aliases and collections: letters, digits and underscores, all that Milvus allows.
NAME = re.compile(r"cbir_[A-Za-z0-9_]{1,100}")
#: Bytes of vectors in one call; a call may take 64 MiB.
_BATCH_BYTES = 4 * 2**20
#: Milvus's own limits: bytes of a text field, and elements of an array.
_MAX_TEXT, _MAX_FACETS = 65535, 4096


def alias_of(index: Path) -> str:
    """The alias of an index, chosen at its first use: it begins like the folder's name, and no other index has it."""
    file = index / "milvus-alias"
    if file.is_file():
        known = file.read_text(encoding="utf-8").strip()
        if not NAME.fullmatch(known):
            raise ArtifactError(f"{file} holds no alias: remove it, and index again", reason="INDEX_CORRUPT")
        return known
    slug = re.sub(r"[^A-Za-z0-9]+", "_", index.resolve().name).strip("_")[:40]
    alias = f"cbir_{slug}_{secrets.token_hex(4)}"
    write_durably(file, alias + "\n")
    return alias


def is_of(alias: str, name: str) -> bool:
    """Whether a collection is one of the index with this alias."""
    return re.fullmatch(f"{alias}_[0-9a-f]{{16}}", name) is not None


def member_field(m: int) -> str:
    """The vector field of the m-th member."""
    return f"member_{m}"


@dataclass(frozen=True)
class Collection:
    """A collection, as the manifest of a version tells it.

    Attributes:
        name: Its name in Milvus.
        alias: The alias of the index, which leads to the collection of the live version.
        rows: How many rows it has.
        members: Names and dimensions of the members, in the order of the vector fields.
        kind: ``FLAT``: Milvus compares a query with all rows; or ``HNSW``.
    """

    name: str
    alias: str
    rows: int
    members: tuple[tuple[str, int], ...]
    kind: str

    @classmethod
    def new(cls, alias: str, rows: int, members: Sequence[tuple[str, int]], kind: str) -> Collection:
        """One that does not exist yet; no other has its name."""
        return cls(f"{alias}_{secrets.token_hex(8)}", alias, rows, tuple(members), kind)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], path: Path) -> Collection:
        """Read what :meth:`to_json` wrote into the manifest of the version at ``path``.

        Raises:
            ArtifactError: ``INDEX_REFUSED`` or ``INDEX_MISMATCH``.
        """
        if data.get("format") != _FORMAT:
            raise ArtifactError(
                f"{path} keeps its vectors in Milvus in format {data.get('format')!r}; this program reads {_FORMAT}: "
                "index again",
                reason="INDEX_MISMATCH",
            )
        try:
            members = tuple((str(name), int(dim)) for name, dim in data["members"])
            found = cls(data["collection"], data["alias"], int(data["rows"]), members, data["index"])
            sound = NAME.fullmatch(found.name) and NAME.fullmatch(found.alias) and found.kind in ("FLAT", "HNSW")
        except (KeyError, TypeError, ValueError):
            sound = None
        if not sound:
            raise ArtifactError(
                f"the manifest of {path} names no collection of Milvus: index again with --rebuild",
                reason="INDEX_REFUSED",
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {
            "kind": "milvus", "format": _FORMAT, "collection": self.name, "alias": self.alias,
            "rows": self.rows, "members": [list(member) for member in self.members], "index": self.kind,
        }  # fmt: skip

    @property
    def dim(self) -> int:
        """Components of all members together."""
        return sum(dim for _, dim in self.members)

    def create(self, to: MilvusConnection) -> None:
        """Make the empty collection.

        Raises:
            ConfigurationError: ``STORE_FIELDS``: the server does not allow so many vector fields.
        """
        from pymilvus import DataType, MilvusClient

        told = f"a version of an index of ensemble-cbir, format {_FORMAT}"
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=told)
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field("image_id", DataType.VARCHAR, max_length=_MAX_TEXT)
        schema.add_field("label", DataType.VARCHAR, max_length=_MAX_TEXT)
        schema.add_field("label_code", DataType.INT32)
        schema.add_field("metadata", DataType.JSON)
        schema.add_field("facets", DataType.ARRAY, element_type=DataType.INT64, max_capacity=_MAX_FACETS)
        for m, (name, dim) in enumerate(self.members):
            schema.add_field(member_field(m), DataType.FLOAT_VECTOR, dim=dim, description=name[:200])
        try:
            to.call("create_collection", self.name, schema=schema, consistency_level="Strong")
        except ArtifactError as error:
            if "maximum" in str(error).lower() and "vector" in str(error).lower():
                raise ConfigurationError(
                    f"the ensemble has {len(self.members)} members, and Milvus at {to.name} allows fewer vector fields "
                    f"in a collection (4 unless it is told otherwise): set proxy.maxVectorFieldNum to "
                    f"{len(self.members)} or more (at most 10) there, or use fewer members",
                    reason="STORE_FIELDS",
                ) from error
            raise

    def fill(
        self,
        to: MilvusConnection,
        gallery: Gallery,
        vectors: Sequence[NDArray[np.float16]],
        report: Callable[[int, int], None],
    ) -> None:
        """Send all rows in batches, build the indexes, and wait until all can be searched.

        Args:
            vectors: (N, d) of each member.
        """
        size = max(1, min(4096, _BATCH_BYTES // (4 * self.dim)))
        for start in range(0, self.rows, size):
            stop = min(start + size, self.rows)
            parts = zip(*(part[start:stop].astype(np.float32) for part in vectors), strict=True)
            to.call("upsert", self.name, [self._row(gallery, start + i, part) for i, part in enumerate(parts)])
            report(stop, self.rows)
        to.call("flush", self.name)
        to.call("create_index", self.name, self._indexes())
        to.call("load_collection", self.name)
        self.check_rows(to, gallery)

    def _row(self, gallery: Gallery, row: int, vectors: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
        metadata = gallery.metadata(row)
        fields = {member_field(m): vector for m, vector in enumerate(vectors)}
        return {
            "row": row, "image_id": gallery.ids[row], "label": gallery.label(row) or "",
            "label_code": int(gallery.label_codes[row]), "metadata": metadata, "facets": facets(metadata)[:_MAX_FACETS],
            **fields,
        }  # fmt: skip

    def _indexes(self) -> Any:
        from pymilvus import MilvusClient

        built = MilvusClient.prepare_index_params()
        params = {"M": 32, "efConstruction": 200} if self.kind == "HNSW" else {}
        for m in range(len(self.members)):
            built.add_index(member_field(m), index_type=self.kind, metric_type="IP", params=params)
        return built

    def check(self, to: MilvusConnection, gallery: Gallery) -> None:
        """Make sure that the collection is there, is this one, and can be searched.

        Raises:
            ArtifactError: ``STORE_MISSING`` or ``INDEX_MISMATCH``.
        """
        try:
            found = to.call("describe_collection", self.name)
        except KeyError:
            raise ArtifactError(
                f"Milvus at {to.name} has no collection {self.name}: this is another Milvus than the index was "
                "published to, or the collection was dropped; index again with --rebuild to send it once more",
                reason="STORE_MISSING",
            ) from None
        dims = {field["name"]: field.get("params", {}).get("dim") for field in found["fields"]}
        for m, (name, dim) in enumerate(self.members):
            if int(dims.get(member_field(m)) or 0) != dim:
                raise self._foreign(to, f"it has no vectors of {dim} components for member {name!r}")
        if missing := {"row", "label_code", "facets"} - dims.keys():
            raise self._foreign(to, f"it has no field {min(missing)!r}")
        to.call("load_collection", self.name)
        self.check_rows(to, gallery)

    def check_rows(self, to: MilvusConnection, gallery: Gallery) -> None:
        """Make sure that no row is missing, and that some rows are the images that they should be.

        Raises:
            ArtifactError: ``INDEX_MISMATCH``.
        """
        count = int(to.call("query", self.name, filter="", output_fields=["count(*)"])[0]["count(*)"])
        if count != self.rows:
            raise self._foreign(to, f"it has {count} rows where the index has {self.rows}")
        some = {0, self.rows // 2, self.rows - 1}
        for one in to.call("query", self.name, filter=rows_in(sorted(some)), output_fields=["row", "image_id"]):
            if one["image_id"] != gallery.ids[int(one["row"])]:
                raise self._foreign(to, f"row {one['row']} is the image {one['image_id']!r}")

    def _foreign(self, to: MilvusConnection, why: str) -> ArtifactError:
        return ArtifactError(
            f"the collection {self.name} of Milvus at {to.name} is not the one of this index: {why}; index again with "
            "--rebuild to send it once more",
            reason="INDEX_MISMATCH",
        )
