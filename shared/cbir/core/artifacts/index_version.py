"""One complete version of an index, opened for reading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from cbir.core.artifacts.gallery import Gallery
from cbir.core.artifacts.manifest import Manifest
from cbir.core.ensemble import EnsembleSpec, member_fingerprint
from cbir.core.errors import ArtifactError
from cbir.core.files import file_sha256
from cbir.core.metric import Projection
from cbir.core.vote import LinearHead, VoteSettings

__all__ = ["HEADS_FILE", "IndexVersion"]

#: The members' linear heads, beside ``vote.json``.
HEADS_FILE = "heads.safetensors"


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
        """(N, dim) projected unit vectors of a member, mapped from the file."""
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
        """(N, raw_dim) unit vectors of a member with a text tower, before projection, mapped from the file."""
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
        """The member's projection, for queries."""
        from safetensors.numpy import load_file

        path = self.path / "members" / member / "projection.safetensors"
        with _reading(path):
            return Projection.from_arrays(load_file(path))

    @cached_property
    def vote(self) -> VoteSettings:
        """The settings of the vote: weights, label vote, calibration."""
        path = self.path / "vote.json"
        with _reading(path):
            return VoteSettings.from_json(json.loads(path.read_text(encoding="utf-8")))

    def heads(self) -> dict[str, LinearHead]:
        """The linear heads by member, with classes in the order of ``gallery.labels``; empty where none were fitted."""
        from safetensors.numpy import load_file

        path = self.path / HEADS_FILE
        if HEADS_FILE not in self.manifest.files:
            return {}
        with _reading(path):
            arrays = load_file(path)
            names = [name.removesuffix(".bias") for name in arrays if name.endswith(".bias")]
            return {name: LinearHead(arrays[f"{name}.weight"], arrays[f"{name}.bias"]) for name in names}

    def is_intact(self, name: str) -> bool:
        """Whether a file of the manifest can be read and still has its checksum."""
        try:
            return bool(file_sha256(self.path / name) == self.manifest.files[name]["sha256"])
        except OSError:
            return False

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            ArtifactError: ``INDEX_CORRUPT`` naming the file.
        """
        for name in self.manifest.files:
            if not self.is_intact(name):
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


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the errors of reading a damaged file into an ArtifactError that names it."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} is damaged: roll back with `cbir rollback`, or index again with --rebuild", reason="INDEX_CORRUPT"
        ) from error
