"""The manifest of an index version (``manifest.json``): written last, it marks the version as complete."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cbir.core.artifacts.segments import PLACES_FILE, segment_file
from cbir.core.artifacts.version_files import is_file_name
from cbir.core.ensemble import EnsembleSpec
from cbir.core.errors import ArtifactError, CbirError, ConfigurationError
from cbir.core.vector_index import index_file, is_index_name

__all__ = ["FORMAT", "LARGEST", "MANIFEST_FILE", "Manifest"]

MANIFEST_FILE = "manifest.json"
#: Version of the layout on disk: 2, which is sealed.  That before seals, 1, is read too, and no other.
FORMAT = 2
_BEFORE_SEALS = 1
#: The same, for versions whose vectors are not among their files.
_WITH_STORE = 3
#: The same, for versions whose rows lie in several segments.
_WITH_SEGMENTS = 4
_KNOWN = (_BEFORE_SEALS, FORMAT, _WITH_STORE, _WITH_SEGMENTS)
#: Most segments, and most rows of all together: places are 32-bit numbers.
_MOST_SEGMENTS, _MOST_ROWS = 64, 2**31 - 1
#: Most bytes of a manifest; 100,000 images that were left out take a tenth of it.
LARGEST = 256 * 2**20

_DIGEST = re.compile(r"[0-9a-f]{64}")
_FINGERPRINT = re.compile(r"[0-9A-Za-z]{1,64}")


@dataclass(frozen=True)
class Manifest:
    """What a version consists of and how it was made.

    Attributes:
        version: Name of the version.
        created: When it was made.
        images: Number of images.
        labels: Number of distinct labels.
        members: By name: fingerprint, raw_dim, dim, metric, fitted_on, index; and text, whether the member can be
            searched by words; if so also prompts (None without labels) and zero_shot_accuracy on the gallery's labels.
        files: By relative path: sha256 and size in bytes.
        settings: Settings of the indexer that change the result, such as pseudo-labels.
        skipped: Images that were left out: uri, reason, stamp.
        libraries: Versions of the libraries that wrote it.
        store: Where the vectors are kept, if not in files of the version: ``kind``, and what that kind of store needs.
        segments: Where rows lie in several files, or not all rows of a file count: the number of rows in each; see
            :mod:`cbir.core.artifacts.segments`.
    """

    version: str
    created: str
    images: int
    labels: int
    ensemble: EnsembleSpec
    members: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[Mapping[str, str], ...] = ()
    libraries: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT
    store: Mapping[str, Any] = field(default_factory=dict)
    segments: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = {**vars(self), "ensemble": self.ensemble.to_json(), "skipped": list(self.skipped)}
        data |= {"segments": list(self.segments), "format": self._format()}
        # As before there were stores and segments, so that programs of that time read it.
        return {name: value for name, value in data.items() if value or name not in ("store", "segments")}

    def _format(self) -> int:
        return _WITH_STORE if self.store else _WITH_SEGMENTS if self.segments else self.format

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Inverse of :meth:`to_json`.

        Raises:
            ValueError, TypeError, KeyError, CbirError: It is no manifest, or names what it may not.
        """
        manifest = cls(
            **{
                **data,
                "ensemble": EnsembleSpec.from_json(data["ensemble"]),
                "skipped": tuple(data["skipped"]),
                "segments": tuple(data.get("segments", ())),
            }
        )
        manifest._check()
        return manifest

    @classmethod
    def parse(cls, data: bytes, path: Path, *, sealed: bool) -> Manifest:
        """Read the bytes of a manifest.

        Args:
            path: Of the version, to be named in errors.
            sealed: Its checksum was found in a seal.

        Raises:
            ArtifactError: ``INDEX_CORRUPT``, or ``INDEX_MISMATCH`` where the format is another.
        """
        try:
            content = json.loads(data)
            known = content.get("format")
            manifest = cls.from_json(content) if known in _KNOWN else None
        except CbirError as error:
            # It is whole, and asks for what no index may.
            raise ArtifactError(f"{path}/{MANIFEST_FILE} is refused: {error}", reason="INDEX_REFUSED") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _damaged(path) from error
        if manifest is None:
            raise ArtifactError(
                f"{path} has index format {known}; this program reads {_KNOWN[0]} to {_KNOWN[-1]}: index again",
                reason="INDEX_MISMATCH",
            )
        if manifest.version != path.name or sealed != (manifest.format != _BEFORE_SEALS):
            raise _damaged(path)
        return manifest

    def files_of(self, name: str) -> list[str]:
        """The files of all segments, by the name of the first."""
        return [segment_file(name, number) for number in range(max(1, len(self.segments)))]

    def check_store(self, kind: str, path: Path) -> None:
        """Refuse a version whose vectors are kept elsewhere than in the store that was opened.

        Args:
            kind: Of that store; ``local`` for the files of the version.
            path: Of the version, to be named in errors.

        Raises:
            ConfigurationError: ``STORE_MISMATCH``.
        """
        found = self.store.get("kind", "local")
        if found != kind:
            way = "leave out --milvus-uri" if found == "local" else f"say where that is with --{found}-uri"
            raise ConfigurationError(
                f"the vectors of {path} are in the store {found!r} and not in {kind!r}: {way}", reason="STORE_MISMATCH"
            )

    def _check(self) -> None:
        """Refuse what is no fact about a version, before anybody opens a file by it."""
        names = [member.name for member in self.ensemble.members]
        if not names or len({*names}) != len(names) or {*names} != {*self.members}:
            raise ValueError("members and ensemble differ")
        if not isinstance(self.images, int) or not isinstance(self.labels, int) or self.images < 0:
            raise ValueError("counts are no numbers")
        if bool(self.store) != (self.format == _WITH_STORE) or not isinstance(self.store, dict):
            raise ValueError("store and format differ")
        if self.store and not re.fullmatch("[a-z]{1,16}", self.store["kind"]):
            raise ValueError("no kind of store")
        if bool(self.segments) != (self.format == _WITH_SEGMENTS):
            raise ValueError("segments and format differ")
        if any(isinstance(rows, bool) or not isinstance(rows, int) or rows < 0 for rows in self.segments):
            raise ValueError("rows of segments are no numbers")
        if self.segments and not (
            len(self.segments) <= _MOST_SEGMENTS and 0 < self.images <= sum(self.segments) <= _MOST_ROWS
        ):
            raise ValueError("more segments or rows than there can be")
        needed = [*self.files_of("images.parquet"), "vote.json", *([PLACES_FILE] if self.segments else [])]
        for name in names:
            facts = self.members[name]
            index = facts["index"]
            if not isinstance(index, str) or index == "auto" or not is_index_name(index):
                raise ValueError(f"{index!r} is no index")
            if not _FINGERPRINT.fullmatch(facts["fingerprint"]):
                raise ValueError("no fingerprint")
            parts = [] if self.store else [*self.files_of("embeddings.npy"), index_file(index)]
            needed += [f"members/{name}/{part}" for part in ("projection.safetensors", *parts) if part]
        for name, facts in self.files.items():
            if not is_file_name(name):
                raise ValueError(f"{name!r} may lie outside the version")
            size = facts["size"]
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise ValueError(f"{size!r} is no size")
            if not _DIGEST.fullmatch(facts["sha256"]):
                raise ValueError("no checksum")
        if missing := [name for name in needed if name not in self.files]:
            raise ValueError(f"{missing[0]} is not listed, so that nothing vouches for it")


def _damaged(path: Path) -> ArtifactError:
    return ArtifactError(
        f"{path}/{MANIFEST_FILE} is damaged: roll back with `cbir rollback`, or index again", reason="INDEX_CORRUPT"
    )
