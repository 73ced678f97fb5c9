"""The content of a version before anything is fitted, and what of the live version can be taken over into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import IndexVersion
from cbir.core.ensemble import EnsembleSpec
from cbir.core.metric import Vectors
from cbir.core.vote import VoteSettings
from cbir.indexer.build.fitting import FIT_SAMPLE, Fit

__all__ = ["GalleryContent", "KeptRows", "VersionContent", "has_labels", "kept_fit"]

Codes = NDArray[np.integer]


class GalleryContent(Protocol):
    """The table of a version: :class:`cbir.core.artifacts.Gallery`, or what writes one row after another."""

    @property
    def labels(self) -> list[str]: ...

    @property
    def label_codes(self) -> NDArray[np.int32]: ...

    def __len__(self) -> int: ...

    def write(self, path: Path, stays: NDArray[np.bool_] | None = None) -> None:
        """Write the table; with ``stays`` all but the rows that the live version has and of which it says so."""
        ...


@dataclass(frozen=True)
class KeptRows:
    """What a version takes over from the live one.

    Attributes:
        live: The live version.
        rows: (N,) the row that an image has there, unchanged; -1 for others.
        changed: Images that were added, removed or changed.
    """

    live: IndexVersion
    rows: NDArray[np.int64]
    changed: int


@dataclass(frozen=True)
class VersionContent:
    """The content of a version, before anything is fitted.

    Attributes:
        raw: Gives the (N, D) unit vectors of a member before projection, in the gallery's order.
        fingerprints: Fingerprints of the members, by name.
        pseudo_labels: Fit the metric without labels even if there are some.
        index: Vector index in place of the members' own ``index``.
        settings: Settings for the manifest.
        device: Where class names are embedded.
        fit_sample: Images on which the metrics and heads of a larger gallery are fitted.
        kept: What may be taken over from the live version, once the gallery is written.
        sources: What was read.
    """

    gallery: GalleryContent
    ensemble: EnsembleSpec
    raw: Callable[[str], Vectors]
    fingerprints: Mapping[str, str]
    vote: VoteSettings
    pseudo_labels: bool = False
    index: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    skipped: Sequence[Mapping[str, str]] = ()
    device: str = "auto"
    fit_sample: int = FIT_SAMPLE
    kept: KeptRows | None = None
    sources: Sequence[Mapping[str, Any]] = ()

    @property
    def metric_codes(self) -> Codes | None:
        """(N,) class numbers to fit the metric with; None if it is fitted without labels."""
        return self.gallery.label_codes if self.gallery.labels and not self.pseudo_labels else None


def kept_fit(content: VersionContent) -> tuple[KeptRows | None, Fit | None]:
    """What of the live version is kept; nothing of a small gallery, which is fitted anew at no cost."""
    kept = content.kept
    if kept is None or len(content.gallery) <= content.fit_sample:
        return None, None
    manifest, vote = kept.live.manifest, kept.live.vote
    prints = {name: facts["fingerprint"] for name, facts in manifest.members.items()}
    same = (
        manifest.ensemble.to_json() == content.ensemble.to_json()
        and prints == dict(content.fingerprints)
        and bool(manifest.settings.get("pseudo_labels")) == content.pseudo_labels
        and dict(vote.dims) == dict(content.vote.dims)
        and not vote.augmentation_neighbours
        and not content.vote.augmentation_neighbours
    )
    fit = Fit.kept(kept.live, kept.changed) if same else None
    return (None if fit is None else kept), fit


def has_labels(live: IndexVersion, labels: Sequence[str]) -> bool:
    """Whether the labels of a version are these."""
    known: set[str | None] = set()
    for batch in live.table(["label"]):
        known.update(batch.column("label").unique().to_pylist())
    return known - {None} == {*labels}
