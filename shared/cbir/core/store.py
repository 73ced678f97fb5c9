"""The artifact store: immutable index versions below one folder, published by rename.

INDEX/CURRENT                      name of the live version
INDEX/versions/<version>/          complete or absent; manifest.json is written last
INDEX/versions/.partial-<version>/ being written; removed by the next indexer
INDEX/cache/                       raw embeddings, see cbir.core.embedding_cache
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from cbir.core.calibration import Curve, logistic_curve
from cbir.core.ensemble import EnsembleSpec, member_fingerprint
from cbir.core.errors import ArtifactError
from cbir.core.gallery import Gallery
from cbir.core.label_vote import LinearHead
from cbir.core.projection import Projection

__all__ = ["FORMAT", "IndexStore", "IndexVersion", "Manifest", "VersionWriter", "VoteSettings"]

#: Version of the layout on disk; a reader refuses others.
FORMAT = 1
HEADS_FILE = "heads.safetensors"


@dataclass(frozen=True)
class VoteSettings:
    """How the members' opinions become a score (``vote.json``).

    Attributes:
        weights: By member; they need not sum to 1.
        neighbours: K of the label vote.
        temperature: T of the label vote.
        label_share: lambda of the label vote; 0 leaves labels out of the score.
        head_share: The linear heads' part of P(label | query), 0..1.
        head_temperature: Of their softmax.
        text_share: The class names' part of P(label | query), 0..1, where members with a text tower are fully trusted
            in them, and less by as much as they are not (:func:`cbir.core.joint_space.names_trust`).
        expansion_neighbours: K of query expansion; 0 leaves queries as they are.
        expansion_exponent: alpha of query expansion.
        augmentation_neighbours: K of the augmentation that the stored vectors went through; 0: none.
        augmentation_exponent: Its alpha.
        calibration: The curve from fused score to probability of relevance, or None.
        tuned: `cbir tune` chose these.
        dims: Components kept of a member, where tuning chose other ones than the ensemble file.
    """

    weights: Mapping[str, float]
    neighbours: int = 10
    temperature: float = 0.05
    label_share: float = 0.0
    head_share: float = 0.5
    head_temperature: float = 0.1
    text_share: float = 0.25
    expansion_neighbours: int = 0
    expansion_exponent: float = 3.0
    augmentation_neighbours: int = 0
    augmentation_exponent: float = 3.0
    calibration: Curve | None = None
    tuned: bool = False
    dims: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` takes back."""
        return {**vars(self), "weights": dict(self.weights), "dims": dict(self.dims)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> VoteSettings:
        """Inverse of :meth:`to_json`."""
        return cls(**{**data, "calibration": _curve(data.get("calibration"))})


def _curve(data: Sequence[Any] | None) -> Curve | None:
    if not data:
        return None
    if isinstance(data[0], int | float):  # of versions that kept slope and offset of a logistic curve
        return logistic_curve(*data)
    return tuple((float(score), float(probability)) for score, probability in data)


@dataclass(frozen=True)
class Manifest:
    """What a version is made of (``manifest.json``).

    Attributes:
        members: By name: fingerprint, raw_dim, dim, metric, fitted_on, index; text (it can be searched by words) and
            where that is so, prompts (None without labels) and zero_shot_accuracy on the gallery's own labels.
        files: By relative path: sha256 and size in bytes.
        settings: What the indexer was told that changes the result (such as pseudo-labels).
        skipped: Images that were left out: uri, reason, stamp.
        libraries: Versions of the libraries that wrote it.
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

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` takes back."""
        return {**vars(self), "ensemble": self.ensemble.to_json(), "skipped": list(self.skipped)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Inverse of :meth:`to_json`."""
        return cls(**{**data, "ensemble": EnsembleSpec.from_json(data["ensemble"]), "skipped": tuple(data["skipped"])})


class IndexVersion:
    """One complete version, opened for reading."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @property
    def name(self) -> str:
        """The version's name."""
        return self.path.name

    @cached_property
    def gallery(self) -> Gallery:
        """The images, in row order."""
        return Gallery.read(self.path / "images.parquet")

    def embeddings(self, member: str) -> NDArray[np.float16]:
        """(N, dim) projected unit vectors of a member, memory-mapped."""
        path = self.path / "members" / member / "embeddings.npy"
        with _reading(path):
            return cast("NDArray[np.float16]", np.load(path, mmap_mode="r"))

    def plain_embeddings(self, member: str) -> NDArray[np.float16]:
        """:meth:`embeddings` before augmentation, where the vote has any and the version kept them."""
        path = self.path / "members" / member / "plain.npy"
        if path.relative_to(self.path).as_posix() not in self.manifest.files:
            return self.embeddings(member)
        with _reading(path):
            return cast("NDArray[np.float16]", np.load(path, mmap_mode="r"))

    def joint(self, member: str) -> NDArray[np.float16]:
        """(N, raw_dim) unit vectors of a member with a text tower before projection, memory-mapped."""
        path = self.path / "members" / member / "joint.npy"
        with _reading(path):
            return cast("NDArray[np.float16]", np.load(path, mmap_mode="r"))

    def classes(self, member: str) -> tuple[NDArray[np.float32], float] | None:
        """(C, raw_dim) unit vectors of the labels' names and the model's logit scale.

        None in a gallery without labels, and for members without a text tower.
        """
        from safetensors.numpy import load_file

        path = self.path / "members" / member / "classes.safetensors"
        if path.relative_to(self.path).as_posix() not in self.manifest.files:
            return None
        with _reading(path):
            arrays = load_file(path)
            return arrays["embeddings"], float(arrays["logit_scale"][0])

    def projection(self, member: str) -> Projection:
        """The map that queries go through."""
        from safetensors.numpy import load_file

        path = self.path / "members" / member / "projection.safetensors"
        with _reading(path):
            return Projection.from_arrays(load_file(path))

    @cached_property
    def vote(self) -> VoteSettings:
        """Weights, label vote and calibration."""
        path = self.path / "vote.json"
        with _reading(path):
            return VoteSettings.from_json(json.loads(path.read_text(encoding="utf-8")))

    def heads(self) -> dict[str, LinearHead]:
        """The members' linear heads by member, classes in the gallery's order; empty where none were fitted."""
        from safetensors.numpy import load_file

        path = self.path / HEADS_FILE
        if HEADS_FILE not in self.manifest.files:
            return {}
        with _reading(path):
            arrays = load_file(path)
            names = [name.removesuffix(".bias") for name in arrays if name.endswith(".bias")]
            return {name: LinearHead(arrays[f"{name}.weight"], arrays[f"{name}.bias"]) for name in names}

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            ArtifactError: ``INDEX_CORRUPT`` naming the file.
        """
        for name, facts in self.manifest.files.items():
            if _sha256(self.path / name) != facts["sha256"]:
                raise ArtifactError(
                    f"{self.path / name} does not match its checksum: roll back with `cbir rollback`, or index again "
                    "with --rebuild",
                    reason="INDEX_CORRUPT",
                )

    def check_ensemble(self, ensemble: EnsembleSpec) -> None:
        """Refuse an ensemble whose embeddings are not those of this version.

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
        for member in ensemble.members:
            if member_fingerprint(member, ensemble.crop) != self.manifest.members[member.name]["fingerprint"]:
                raise ArtifactError(
                    f"member {member.name!r} has other weights, options, input or crop than when the index "
                    f"{self.path} was made: put the old weights back, or index again",
                    reason="INDEX_MISMATCH",
                )


class IndexStore:
    """One INDEX folder."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def _versions(self) -> Path:
        return self.path / "versions"

    def current(self) -> str:
        """The name of the live version.

        Raises:
            ArtifactError: ``INDEX_NOT_FOUND``.
        """
        try:
            name = (self.path / "CURRENT").read_text(encoding="utf-8").strip()
        except UnicodeDecodeError:
            raise ArtifactError(
                f"{self.path}/CURRENT is damaged: roll back with `cbir rollback {self.path} --version-name VERSION`",
                reason="INDEX_CORRUPT",
            ) from None
        except OSError:
            if complete := self.versions():
                raise ArtifactError(
                    f"{self.path} has versions but no CURRENT file, so it was only half copied: copy it again, or make "
                    f"one live with `cbir rollback {self.path} --version-name {complete[-1]}`",
                    reason="INDEX_INCOMPLETE",
                ) from None
            raise ArtifactError(
                f"there is no index at {self.path}: make one with `cbir index SOURCE --out {self.path}`",
                reason="INDEX_NOT_FOUND",
            ) from None
        return name

    def has_current(self) -> bool:
        """Whether a version is live."""
        return (self.path / "CURRENT").is_file()

    def versions(self) -> list[str]:
        """The complete versions, oldest first."""
        if not self._versions.is_dir():
            return []
        return sorted(
            p.parent.name for p in self._versions.glob("*/manifest.json") if not p.parent.name.startswith(".")
        )

    def open(self, version: str | None = None, *, verify: bool = False) -> IndexVersion:
        """Open a version (default: the live one) and check that it is whole.

        Raises:
            ArtifactError: ``INDEX_NOT_FOUND``, ``VERSION_NOT_FOUND``, ``INDEX_INCOMPLETE`` or ``INDEX_CORRUPT``.
        """
        name = version or self.current()
        path = self._versions / name
        if not name or Path(name).name != name or not path.is_dir():
            known = ", ".join(self.versions()) or "none"
            raise ArtifactError(
                f"the index {self.path} has no version {name!r}; complete versions are: {known}",
                reason="VERSION_NOT_FOUND",
            )
        try:
            data = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            known = data.get("format")
            manifest = Manifest.from_json(data) if known == FORMAT else None
        except OSError:
            raise ArtifactError(
                f"the version {path} has no manifest.json, so it was only half copied: copy it again",
                reason="INDEX_INCOMPLETE",
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ArtifactError(
                f"{path}/manifest.json is damaged: roll back with `cbir rollback`, or index again",
                reason="INDEX_CORRUPT",
            ) from None
        if manifest is None:
            raise ArtifactError(
                f"{path} has index format {known}; this program reads {FORMAT}: index again",
                reason="INDEX_MISMATCH",
            )
        for file, facts in manifest.files.items():
            size = (path / file).stat().st_size if (path / file).is_file() else -1
            if size != facts["size"]:
                found = "is missing" if size < 0 else f"has {size:,} bytes in place of {facts['size']:,}"
                raise ArtifactError(
                    f"{path / file} {found}, so the version was only half copied: copy it again, or roll back",
                    reason="INDEX_INCOMPLETE",
                )
        opened = IndexVersion(path, manifest)
        if verify:
            opened.verify()
        return opened

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the index for writing.

        Raises:
            ArtifactError: ``INDEX_LOCKED`` where another indexer holds it; ``INDEX_UNWRITABLE``.
        """
        try:
            self._versions.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("a")
        except OSError as error:
            raise ArtifactError(
                f"{self.path} cannot be written ({error.strerror}): choose another --out", reason="INDEX_UNWRITABLE"
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ArtifactError(
                    f"another process is writing {self.path}: wait for it to end", reason="INDEX_LOCKED"
                ) from None
            yield

    def begin(self) -> VersionWriter:
        """Start a new version.  Call with the lock held: leftovers of killed writers are removed."""
        for leftover in self._versions.glob(".partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"[:-3] + f"Z-{secrets.token_hex(3)}"
        previous = None
        if self.has_current():
            try:
                previous = self.open()
            except ArtifactError:
                previous = None  # a damaged live version is nothing to link to
        return VersionWriter(self, name, previous)

    def activate(self, version: str) -> None:
        """Make a complete version the live one (publish, rollback)."""
        self.open(version)
        partial = self.path / f".CURRENT-{secrets.token_hex(3)}"
        with partial.open("w") as file:
            file.write(version + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path / "CURRENT")
        _sync_folder(self.path)

    def rollback(self, version: str | None = None) -> str:
        """Make ``version`` (default: the newest one older than the live one) the live one; return its name."""
        if version is None:
            self.current()
            older = [name for name in self.versions() if name < self.current()]
            if not older:
                raise ArtifactError(
                    f"the index {self.path} has no version before {self.current()}: nothing to roll back to",
                    reason="VERSION_NOT_FOUND",
                )
            version = older[-1]
        self.activate(version)
        return version

    def collect(self, keep: int) -> list[str]:
        """Remove all but the live version and the ``keep`` newest ones; return what was removed."""
        names = self.versions()
        kept = {self.current(), *(names[-keep:] if keep else ())}
        removed = [name for name in names if name not in kept]
        for name in removed:
            # The manifest goes first: a version that is half removed is absent, not broken.
            (self._versions / name / "manifest.json").unlink()
            shutil.rmtree(self._versions / name)
        for leftover in self._versions.iterdir():
            # What a killed writer or collector left behind.
            if not (leftover / "manifest.json").exists():
                shutil.rmtree(leftover, ignore_errors=True)
        return removed


class VersionWriter:
    """A version being written; nothing of it is seen before :meth:`publish`."""

    def __init__(self, store: IndexStore, name: str, previous: IndexVersion | None) -> None:
        self.store, self.name, self.previous = store, name, previous
        self.path = store.path / "versions" / f".partial-{name}"
        self.path.mkdir(parents=True)

    def file(self, name: str) -> Path:
        """The path of a new file, its folder made."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_json(self, name: str, data: Any) -> None:
        """Write a JSON file."""
        self.file(name).write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")

    def publish(self, manifest: Manifest, *, activate: bool = True) -> IndexVersion:
        """Hash and sync the files, write the manifest, rename the folder, and change CURRENT.

        Args:
            manifest: ``version`` and ``files`` are filled in here.
        """
        before = self.previous.manifest.files if self.previous else {}
        files = {}
        for path in sorted(p for p in self.path.rglob("*") if p.is_file()):
            name = path.relative_to(self.path).as_posix()
            facts = {"sha256": _sha256(path), "size": path.stat().st_size}
            files[name] = facts
            if self.previous and before.get(name) == facts and _sha256(self.previous.path / name) == facts["sha256"]:
                # The same bytes are kept once: a hard link to the version before.
                link = path.with_name(path.name + ".link")
                try:
                    os.link(self.previous.path / name, link)
                    link.replace(path)
                except OSError:
                    link.unlink(missing_ok=True)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        complete = Manifest(**{**vars(manifest), "version": self.name, "files": files})
        text = json.dumps(complete.to_json(), indent=1, ensure_ascii=False)
        with (self.path / "manifest.json").open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self.path)
        final = self.path.with_name(self.name)
        self.path.rename(final)
        _sync_folder(final.parent)
        if activate:
            self.store.activate(self.name)
        return IndexVersion(final, complete)

    def write_heads(self, heads: Mapping[str, LinearHead]) -> None:
        """Write the members' linear heads; without any, nothing."""
        from safetensors.numpy import save_file

        arrays: dict[str, NDArray[np.float32]] = {}
        for name, head in heads.items():
            arrays |= {f"{name}.weight": np.ascontiguousarray(head.weight), f"{name}.bias": head.bias}
        if arrays:
            save_file(arrays, self.file(HEADS_FILE))

    def abandon(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file of a version that turns out to be damaged."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} is damaged: roll back with `cbir rollback`, or index again with --rebuild", reason="INDEX_CORRUPT"
        ) from error


def _sha256(path: Path) -> str | None:
    """The digest of a file, None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
