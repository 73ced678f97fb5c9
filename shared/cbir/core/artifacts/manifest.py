"""The manifest of an index version (``manifest.json``): written last, it marks the version as complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cbir.core.ensemble import EnsembleSpec
from cbir.core.errors import ArtifactError

__all__ = ["FORMAT", "Manifest"]

#: Version of the layout on disk; a reader refuses others.
FORMAT = 1


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
        """Plain data for JSON."""
        return {**vars(self), "ensemble": self.ensemble.to_json(), "skipped": list(self.skipped)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Inverse of :meth:`to_json`."""
        return cls(**{**data, "ensemble": EnsembleSpec.from_json(data["ensemble"]), "skipped": tuple(data["skipped"])})

    @classmethod
    def read(cls, version: Path) -> Manifest:
        """The manifest of the version in a folder.

        Raises:
            ArtifactError: ``INDEX_INCOMPLETE``, ``INDEX_CORRUPT`` or ``INDEX_MISMATCH`` where the format is another.
        """
        try:
            data = json.loads((version / "manifest.json").read_text(encoding="utf-8"))
            known = data.get("format")
            manifest = cls.from_json(data) if known == FORMAT else None
        except OSError:
            raise ArtifactError(
                f"the version {version} has no manifest.json, so it was only half copied: copy it again",
                reason="INDEX_INCOMPLETE",
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ArtifactError(
                f"{version}/manifest.json is damaged: roll back with `cbir rollback`, or index again",
                reason="INDEX_CORRUPT",
            ) from None
        if manifest is None:
            raise ArtifactError(
                f"{version} has index format {known}; this program reads {FORMAT}: index again",
                reason="INDEX_MISMATCH",
            )
        return manifest
