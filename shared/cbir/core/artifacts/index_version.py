"""One complete version of an index, opened for reading."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as safetensors_load

from cbir.core.artifacts.manifest import Manifest
from cbir.core.artifacts.segments import PLACES_FILE, check_places
from cbir.core.artifacts.version_files import VersionFiles
from cbir.core.ensemble import EnsembleSpec, member_fingerprint
from cbir.core.errors import ArtifactError
from cbir.core.vector_index import HalfVectors, SegmentedVectors, VectorIndex, index_file, load_index
from cbir.core.vote import VoteSettings

# What reads the parts of a version is imported with the first of its kind: it brings libraries that take a second, and
# whoever only asks what a version is has no use for them.
if TYPE_CHECKING:
    from cbir.core.artifacts.gallery import Gallery
    from cbir.core.artifacts.table_reader import TableReader
    from cbir.core.metric import Projection
    from cbir.core.vote import LinearHead

__all__ = ["HEADS_FILE", "SOURCES_FILE", "TABLE_FILE", "IndexVersion"]

_log = logging.getLogger(__name__)

#: The gallery's table.
TABLE_FILE = "images.parquet"
#: The members' linear heads, beside ``vote.json``.
HEADS_FILE = "heads.safetensors"
#: What the indexer read: sources, shards, and how many images each had.
SOURCES_FILE = "sources.json"


class IndexVersion:
    """One complete version, opened for reading."""

    def __init__(self, path: Path, manifest: Manifest, *, verify: bool = True) -> None:
        """Open the files that the manifest lists.

        Args:
            path: ``INDEX/versions/<version>``.
            verify: Compare each file with its checksum when it is first used.

        Raises:
            ArtifactError: ``INDEX_INCOMPLETE`` or ``INDEX_LINKED``.
        """
        self.path, self.manifest = path, manifest
        self._files = VersionFiles(path.parent.parent, path.name, manifest.files, verify=verify)

    @property
    def name(self) -> str:
        """The version's name."""
        return self.path.name

    @cached_property
    def gallery(self) -> Gallery:
        """The images, in row order."""
        from cbir.core.artifacts.gallery import Gallery

        tables = []
        for name, rows in self._segments(TABLE_FILE):
            with self._reading(name) as place:
                tables.append(Gallery.read(Path(place)))
                if len(tables[-1]) != rows:
                    raise ValueError("it has another number of images than the manifest says")
        return tables[0] if self.places is None else Gallery.joined(tables, self.places)

    @cached_property
    def places(self) -> NDArray[np.int32] | None:
        """(N,) where each row is in the segments; None where all rows lie in one file, in their order."""
        if not self.manifest.segments:
            return None
        with self._reading(PLACES_FILE):
            places = self._files.array(PLACES_FILE)
            check_places(places, self.manifest.images, self.manifest.segments)
            return cast("NDArray[np.int32]", np.asarray(places))

    def _segments(self, name: str) -> list[tuple[str, int]]:
        """The files of the segments and their numbers of rows, by the name of the first."""
        manifest = self.manifest
        return list(zip(manifest.files_of(name), manifest.segments or (manifest.images,), strict=True))

    def has_intact_table(self) -> bool:
        """Whether the files of the gallery's table can be read and still have their checksums."""
        names = [*self.manifest.files_of(TABLE_FILE), *([PLACES_FILE] if self.manifest.segments else [])]
        return all(self.is_intact(name) for name in names)

    def table(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """The gallery's table as record batches, which are read one after another.

        Args:
            columns: Names of those that are read; by default all.
        """
        if self.places is None:
            return self._batches(TABLE_FILE, self.manifest.images, columns)
        return self.table_reader(columns).batches(self.manifest.images)

    def table_reader(self, columns: Sequence[str] | None = None) -> TableReader:
        """Reads rows of the gallery's table in rising order.

        Args:
            columns: Names of those that are read; by default all.
        """
        from cbir.core.artifacts.table_reader import TableReader

        segments = self._segments(TABLE_FILE)
        opened = [partial(self._batches, *segment, columns) for segment in segments]
        return TableReader(opened, [rows for _, rows in segments], self.places)

    def _batches(self, name: str, rows: int, columns: Sequence[str] | None) -> Iterator[Any]:
        """The table of a segment of so many rows."""
        from cbir.core.artifacts.gallery_file import read_gallery

        with self._reading(name) as place:
            for batch in read_gallery(Path(place), columns):
                yield batch
                rows -= batch.num_rows
            if rows:
                raise ValueError("it has another number of images than the manifest says")

    def embeddings(self, member: str) -> HalfVectors:
        """(N, dim) projected unit vectors of a member, mapped from the file."""
        return self._vectors(f"members/{member}/embeddings.npy")

    @property
    def keeps_plain_embeddings(self) -> bool:
        """Whether the version kept embeddings before augmentation, as it does where neighbours were averaged."""
        return all(f"members/{name}/plain.npy" in self._files for name in self.manifest.members)

    def plain_embeddings(self, member: str) -> HalfVectors:
        """(N, dim) embeddings before augmentation, where the version kept them; else :meth:`embeddings`."""
        name = f"members/{member}/plain.npy"
        return self._vectors(name) if name in self._files else self.embeddings(member)

    def joint(self, member: str) -> HalfVectors:
        """(N, raw_dim) unit vectors of a member with a text tower, before projection, mapped from the file."""
        return self._vectors(f"members/{member}/joint.npy")

    def _vectors(self, name: str) -> HalfVectors:
        found: list[NDArray[np.float16]] = []
        for file, rows in self._segments(name):
            with self._reading(file):
                vectors = self._files.array(file)
                width = found[0].shape[1] if found else None
                if vectors.dtype != np.float16 or vectors.ndim != 2 or len(vectors) != rows or width not in (
                    None, vectors.shape[1],
                ):  # fmt: skip
                    raise ValueError(f"{vectors.dtype} {vectors.shape} are no vectors of {rows} images")
                found.append(vectors)
        return found[0] if self.places is None else SegmentedVectors(found, self.places)

    def classes(self, member: str) -> tuple[NDArray[np.float32], float] | None:
        """(C, raw_dim) unit vectors of the labels' names and the model's logit scale.

        None in a gallery without labels, and for members without a text tower.
        """
        name = f"members/{member}/classes.safetensors"
        if name not in self._files:
            return None
        with self._reading(name):
            arrays = self._arrays(name)
            return arrays["embeddings"], float(arrays["logit_scale"][0])

    def projection(self, member: str) -> Projection:
        """The member's projection, for queries."""
        from cbir.core.metric import Projection

        name = f"members/{member}/projection.safetensors"
        with self._reading(name):
            return Projection.from_arrays(self._arrays(name))

    @cached_property
    def vote(self) -> VoteSettings:
        """The settings of the vote: weights, label vote, calibration."""
        with self._reading("vote.json"):
            return VoteSettings.from_json(json.loads(self._files.read("vote.json")))

    def sources(self) -> object:
        """What the indexer read for this version; None where it was not written down."""
        if SOURCES_FILE not in self._files:
            return None
        with self._reading(SOURCES_FILE):
            return json.loads(self._files.read(SOURCES_FILE))

    def heads(self) -> dict[str, LinearHead]:
        """The linear heads by member, with classes in the order of ``gallery.labels``; empty where none were fitted."""
        from cbir.core.vote import LinearHead

        if HEADS_FILE not in self._files:
            return {}
        with self._reading(HEADS_FILE):
            arrays = self._arrays(HEADS_FILE)
            names = [name.removesuffix(".bias") for name in arrays if name.endswith(".bias")]
            return {name: LinearHead(arrays[f"{name}.weight"], arrays[f"{name}.bias"]) for name in names}

    def vector_index(self, member: str, device: str, vectors: HalfVectors) -> VectorIndex | None:
        """The member's approximate index over ``vectors``, None where its search is exact."""
        kind = str(self.manifest.members[member]["index"])
        file = index_file(kind)
        if file is None:
            return None
        with self._reading(f"members/{member}/{file}") as place:
            return load_index(kind, Path(place), vectors, device)

    def link(self, name: str, path: Path) -> bool:
        """Make ``path`` a hard link to a file of the version; False: a copy, where that cannot be."""
        return self._files.link(name, path)

    def is_intact(self, name: str) -> bool:
        """Whether a file of the manifest can be read and still has its checksum."""
        try:
            return self._files.is_intact(name)
        except OSError:
            return False

    def verify(self, members: Sequence[str] | None = None) -> None:
        """Compare every file with its checksum.

        Args:
            members: Only their files are compared.

        Raises:
            ArtifactError: ``INDEX_CORRUPT`` naming the file.
        """
        folders = None if members is None else {f"members/{name}" for name in members}
        self._files.verify(
            None if folders is None else [name for name in self.manifest.files if name.rpartition("/")[0] in folders]
        )

    def _arrays(self, name: str) -> dict[str, NDArray[np.float32]]:
        return cast("dict[str, NDArray[np.float32]]", safetensors_load(self._files.read(name)))

    @contextmanager
    def _reading(self, name: str) -> Iterator[str]:
        """Name the file of a version that turns out to be damaged; gives a path that leads to that very file."""
        try:
            yield self._files.place(name)
        except ArtifactError as error:
            # Libraries were given the descriptor's path, which means nothing to whoever reads this.
            raise ArtifactError(
                re.sub(r"/dev/fd/\d+", str(self.path / name), str(error)), reason=error.reason
            ) from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, SafetensorError) as error:
            raise ArtifactError(
                f"{self.path / name} is damaged: roll back with `cbir rollback`, or index again with --rebuild",
                reason="INDEX_CORRUPT",
            ) from error

    def check_ensemble(self, ensemble: EnsembleSpec) -> None:
        """Refuse an ensemble whose embeddings are not those of this version.

        Where an earlier release made them, which decoded and cropped a little differently, a warning is logged.

        Raises:
            ArtifactError: ``INDEX_MISMATCH`` saying which member differs and how.
        """
        mine, theirs = [m.name for m in self.manifest.ensemble.members], [m.name for m in ensemble.members]
        if mine != theirs:
            raise ArtifactError(
                f"the index {self.path} was made by ensemble {self.manifest.ensemble.name!r} with members "
                f"{', '.join(mine)}; this is ensemble {ensemble.name!r} with {', '.join(theirs)}: "
                "serve it with the ensemble it was made by, or index again",
                reason="INDEX_MISMATCH",
            )
        from cbir.core.images import CROP_VERSION

        earlier = False
        for member in ensemble.members:
            stored = self.manifest.members[member.name]["fingerprint"]
            if member_fingerprint(member, ensemble.crop) == stored:
                continue
            earlier = any(member_fingerprint(member, ensemble.crop, v) == stored for v in range(1, CROP_VERSION))
            if not earlier:
                raise ArtifactError(
                    f"member {member.name!r} has other weights, options, input or crop than when the index "
                    f"{self.path} was made: put the old weights back, or index again",
                    reason="INDEX_MISMATCH",
                )
        if earlier:
            _log.warning(
                "the index %s was made by an earlier release, which decoded and cropped images a little differently: "
                "it is usable, and `cbir index` makes it agree (it embeds every image again)",
                self.path,
            )
