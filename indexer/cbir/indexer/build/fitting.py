"""What is learnt from the gallery: projections and heads, from all of a small gallery and from a sample of a large one.

N images, D raw components of a member.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import IndexVersion
from cbir.core.ensemble import MemberSpec, classifier_directions
from cbir.core.metric import (
    SAMPLE,
    Projection,
    Vectors,
    class_affinity,
    enough_labels,
    fit_projection,
    neighbour_metrics,
)
from cbir.indexer.build.runner import Progress

__all__ = ["FIT_SAMPLE", "Fit", "affinity_by_classifier", "fit_members", "sampled", "stratified_sample"]

Floats = NDArray[np.float32]
Codes = NDArray[np.integer]

#: Images on which metrics and heads are fitted; of larger galleries a sample.  By default: ``FitSettings.sample``.
FIT_SAMPLE = 50_000
#: Share of the images since whose change a kept fit is made anew.
_REFIT = 0.05
_SEED = 0


@dataclass(frozen=True)
class Fit:
    """What a version's projections were fitted on.

    Attributes:
        images: N when they were fitted.
        sample: Images that they were fitted on.
        changed: Images added, removed or changed since.
    """

    images: int
    sample: int
    changed: int = 0

    @classmethod
    def kept(cls, live: IndexVersion, changed: int) -> Fit | None:
        """The live version's fit, still good for a gallery of which ``changed`` more images differ; None if it is not.

        Versions written before fits were kept tell of none.
        """
        told = [facts.get("fit") for facts in live.manifest.members.values()]
        try:
            fit = cls(**told[0])  # type: ignore[arg-type]
            total = cls(int(fit.images), int(fit.sample), int(fit.changed) + changed)
        except (TypeError, ValueError):
            return None
        return total if all(other == told[0] for other in told) and total.changed <= _REFIT * total.images else None


def stratified_sample(codes: Codes | None, count: int, size: int) -> NDArray[np.int64] | slice:
    """Rows to fit on: all, or ``size`` of them drawn so that every class keeps its share.

    A class of which the share would be less than two images gives two where it has them, as one alone tells nothing of
    the spread within its class.

    Args:
        codes: (N,) class numbers, negative where unknown; None without labels.
        count: N.

    Returns:
        Rising row numbers, at most ``size`` and two a class; or a slice of all rows.
    """
    if count <= size:
        return slice(None)
    rng = np.random.default_rng(_SEED)
    if codes is None:
        return np.sort(rng.choice(count, size, replace=False))
    # A random order in which each image's rank within its class is known: the first of each class are taken.
    order = rng.permutation(count)
    by_class = order[np.argsort(codes[order], kind="stable")]
    _, starts, sizes = np.unique(codes[by_class], return_index=True, return_counts=True)
    share = np.minimum(sizes, np.maximum(2, np.floor(sizes * (size / count)).astype(np.int64)))
    rank = np.arange(count) - np.repeat(starts, sizes)
    return np.sort(by_class[rank < np.repeat(share, sizes)])


def fit_members(
    raw: Callable[[str], Vectors],
    members: Sequence[MemberSpec],
    codes: Codes | None,
    report: Callable[[Progress], None] = lambda _: None,
) -> dict[str, tuple[Projection, str]]:
    """Fit the projection of every member.

    Without labels, the metrics are learnt jointly from a sample of the gallery, with the help of the classifiers that
    came with the members' weights.

    Returns:
        By member: the projection, and what it was fitted on.
    """
    fitted: dict[str, tuple[Projection, str]] = {}
    joint = codes is None or not enough_labels(codes)
    samples: dict[str, Floats] = {}
    affinities: list[Floats] = []
    for i, member in enumerate(members):
        report(Progress(f"fit {member.name}", i, len(members)))
        vectors = raw(member.name)
        together = joint and member.metric == "glrt"
        fitted[member.name] = fit_projection(vectors, member.dim, "pca" if together else member.metric, codes)
        if together and fitted[member.name][1] == "gallery":
            chosen = stratified_sample(None, len(vectors), SAMPLE)
            samples[member.name] = fitted[member.name][0].apply(vectors[chosen])
            if (affinity := affinity_by_classifier(member, vectors, chosen)) is not None:
                affinities.append(affinity)
    if samples:
        report(Progress("fit metrics", 0, 0))
        weights = [member.weight for member in members if member.name in samples]
        metrics = neighbour_metrics(list(samples.values()), weights=weights, affinities=affinities)
        for name, metric in zip(samples, metrics, strict=True):
            projection = fitted[name][0]
            fitted[name] = Projection(projection.mean, projection.basis, metric), "neighbours"
    return fitted


def affinity_by_classifier(member: MemberSpec, raw: Vectors, rows: NDArray[np.int64] | slice) -> Floats | None:
    """Which classes of its network (K,) rows of a member's (N, D) raw vectors resemble; None without a classifier.

    See :func:`cbir.core.metric.class_affinity`.
    """
    classifier = classifier_directions(member, int(raw.shape[1]))
    return None if classifier is None else class_affinity(raw[rows], classifier)


class Rows:
    """Some rows of raw vectors, as raw vectors themselves."""

    def __init__(self, vectors: Vectors, rows: NDArray[np.int64]) -> None:
        self._vectors, self._rows = vectors, rows
        self.shape = (len(rows), int(vectors.shape[1]))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> Floats:
        return self._vectors[self._rows[rows]]


def sampled(raw: Callable[[str], Vectors], rows: NDArray[np.int64] | slice) -> Callable[[str], Vectors]:
    """The raw vectors of some rows, by member."""
    return raw if isinstance(rows, slice) else lambda member: Rows(raw(member), rows)
