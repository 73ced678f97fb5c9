"""Cross-fitting: queries are scored under metrics that were not fitted to their labels.

The labelled gallery is split into folds; the images of a fold are queries against all other images, under a metric
fitted to the others.

Shapes: N images (the gallery first, then given queries).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from cbir.core.ensemble import MemberSpec
from cbir.core.metric import augmented, expanded, fit_pca, normalise
from cbir.indexer.build import affinity_by_classifier

__all__ = [
    "MemberSpace",
    "MemberVectors",
    "Sharpening",
    "Split",
    "cross_splits",
    "member_space",
    "sharpen",
]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
#: (B, dim) unit vectors by (member number, dim).
MemberVectors = Mapping[tuple[int, int], Floats]

_BLOCK = 512


@dataclass(frozen=True)
class Split:
    """Row numbers of one split: images whose labels are fitted to, images that are searched, and queries."""

    teachers: Ints
    gallery: Ints
    queries: Ints


@dataclass(frozen=True)
class MemberSpace:
    """The embeddings of one member before the metric.

    Attributes:
        components: (N, D) principal components, not normalised; the first ones are the projection to fewer dimensions.
        glrt: Whether a GLRT metric is learnt on them.
        dim: The number of dimensions that the ensemble file asks for.
        weight: The member's, in that file.
        affinity: Gives what :func:`cbir.core.metric.class_affinity` says of the images with these (K,) numbers; None
            for a member that has no classifier.
    """

    name: str
    components: Floats
    glrt: bool
    dim: int
    weight: float = 1.0
    affinity: Callable[[Ints], Floats | None] = lambda _: None

    def unit(self, dim: int) -> Floats:
        """(N, dim) unit vectors of the first components."""
        return normalise(self.components[:, :dim])


@dataclass(frozen=True)
class Sharpening:
    """Augmentation of the gallery and query expansion; see :mod:`cbir.core.metric.expansion`."""

    augmentation_neighbours: int = 5
    augmentation_exponent: float = 3.0
    expansion_neighbours: int = 10
    expansion_exponent: float = 3.0


def member_space(member: MemberSpec, raw: Floats, gallery: int, dim: int, widest: int) -> MemberSpace:
    """Principal components of a member's raw vectors; the analysis is fitted to the first ``gallery`` rows."""
    mean, basis = fit_pca(raw[:gallery], max(dim, widest), centred=member.metric != "cosine")
    components = np.asarray((raw - mean) @ basis, np.float32)
    affinity = partial(affinity_by_classifier, member, raw)
    return MemberSpace(member.name, components, member.metric == "glrt", dim, member.weight, affinity)


def cross_splits(
    codes: NDArray[np.integer], groups: Sequence[str], folds: int = 5, seed: int = 0, most: int | None = None
) -> list[Split]:
    """Split a gallery into folds, stratified by class.

    Args:
        codes: (N,) class numbers, -1 without a label; images without a label are searched in every fold and are never
            queries.
        groups: (N,) names of groups; images of a group (those with the same bytes) go into the same fold, so that none
            finds itself.
    """
    rng = np.random.default_rng(seed)
    place = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    group = np.array([place[name] for name in groups])
    fold_of_group = np.full(len(place), -1)
    counter = 0
    for code in np.unique(codes[codes >= 0]):
        for number in rng.permutation(np.unique(group[codes == code])):
            if fold_of_group[number] < 0:
                fold_of_group[number] = counter % folds
                counter += 1
    fold = np.where(codes >= 0, fold_of_group[group], -1)
    splits: list[Split] = []
    room = len(codes) if most is None else most
    for f in range(folds):
        others = np.flatnonzero(fold != f)
        asking = np.flatnonzero(fold == f)
        if len(asking) > room:
            asking = np.sort(rng.choice(asking, room, replace=False))
        if len(asking):
            splits.append(Split(others[codes[others] >= 0], others, asking))
            room -= len(asking)
    return splits


def sharpen(
    asking: MemberVectors, searched: MemberVectors, share: NDArray[np.floating], how: Sharpening
) -> tuple[dict[tuple[int, int], Floats], dict[tuple[int, int], Floats]]:
    """Augment the searched vectors, and expand the queries with what they find among them.

    Args:
        asking: Vectors of the queries, with one dimension for each member, like ``searched``.
        searched: Vectors that are searched.
        share: (M,) weights of the members; their sum is 1.
    """
    keys = list(asking)
    widths = [asking[key].shape[1] for key in keys]
    gallery = augmented(
        np.concatenate([searched[key] for key in keys], axis=1), widths, how.augmentation_neighbours,
        how.augmentation_exponent, np.asarray(share),
    )  # fmt: skip
    queries = np.concatenate([asking[key] for key in keys], axis=1)
    scale = np.repeat(share, widths).astype(np.float32)
    moved = np.empty_like(queries)
    base = torch.from_numpy(gallery)
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK]
        best = torch.topk(torch.from_numpy(block * scale) @ base.T, min(how.expansion_neighbours, len(gallery)))
        moved[start : start + _BLOCK] = expanded(
            block, gallery[best.indices.numpy()], best.values.numpy(), how.expansion_exponent, widths
        )
    stops = np.cumsum(widths)[:-1]
    return (
        dict(zip(keys, np.split(moved, stops, axis=1), strict=True)),
        dict(zip(keys, np.split(gallery, stops, axis=1), strict=True)),
    )
