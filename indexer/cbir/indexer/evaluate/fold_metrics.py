"""The members' metrics for each fold, learnt from all labels except those of the fold's own queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import side_by_side
from cbir.core.metric import SAMPLE, enough_labels, neighbour_metrics, normalise
from cbir.indexer.evaluate.cross_fit import MemberSpace, Split
from cbir.indexer.evaluate.label_moments import LabelMoments

__all__ = ["FoldMetrics"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Key = tuple[int, int]


def _nothing(rows: Ints) -> None:
    """What a member tells that has no classifier."""


class FoldMetrics:
    """Metrics by member, dimension and split, learnt when they are first needed.

    Args:
        codes: (N,) class numbers, -1 without a label.
        with_labels: False learns without them even where there are enough.
    """

    def __init__(
        self,
        spaces: Sequence[MemberSpace],
        codes: NDArray[np.integer],
        splits: Sequence[Split],
        *,
        with_labels: bool = True,
    ) -> None:
        self._codes, self._splits = codes, splits
        self._teachers = np.unique(np.concatenate([split.teachers for split in splits]))
        self._classes = int(codes.max(initial=-1)) + 1
        self._with_labels = with_labels and all(enough_labels(codes[split.teachers]) for split in splits)
        # With labels no classifier is asked, and the raw vectors that it would need can go.
        self._spaces = [replace(space, affinity=_nothing) for space in spaces] if self._with_labels else [*spaces]
        self._moments: dict[Key, LabelMoments] = {}
        self._metrics: dict[tuple[Key, int], Floats] = {}

    def project(self, dims: Sequence[Sequence[int]], split: int) -> dict[Key, Floats]:
        """Project all images into every member's space at every dimension, with the metrics of a split.

        Returns:
            (N, dim) unit vectors by (member number, dim).
        """
        if not self._with_labels:
            self._learn_without_labels(dims)
        keys = [(m, dim) for m, choices in enumerate(dims) for dim in choices]
        # The largest first, so that no core is left with it at the end.
        order = sorted(keys, key=lambda key: -key[1])
        found = dict(zip(order, side_by_side(lambda key: self._project(key, split), order), strict=True))
        return {key: found[key] for key in keys}

    def _project(self, key: Key, split: int) -> Floats:
        space = self._spaces[key[0]]
        z = space.unit(key[1])
        return normalise(z @ self._metric(key, split, z).T) if space.glrt else z

    def _metric(self, key: Key, split: int, z: Floats) -> Floats:
        if (key, split) not in self._metrics:
            self._metrics[key, split] = self._taught(key, split, z).metric()
        return self._metrics[key, split]

    def _taught(self, key: Key, split: int, z: Floats) -> LabelMoments:
        """Sums over the labelled images that the split's metric is learnt from: all of them minus those left out."""
        if key not in self._moments:
            self._moments[key] = self._add_up(z, self._teachers)
        left_out = np.setdiff1d(self._teachers, self._splits[split].teachers, assume_unique=True)
        return self._moments[key] - self._add_up(z, left_out) if len(left_out) else self._moments[key]

    def _add_up(self, z: Floats, rows: Ints) -> LabelMoments:
        return LabelMoments.of(z[rows], self._codes[rows], self._classes)

    def _learn_without_labels(self, dims: Sequence[Sequence[int]]) -> None:
        """Learn metrics without labels where some split has too few; they are the same for all splits."""
        rows = np.unique(np.concatenate([split.gallery for split in self._splits]))
        if len(rows) > SAMPLE:
            rows = np.sort(np.random.default_rng(0).choice(rows, SAMPLE, replace=False))
        learning = [m for m, space in enumerate(self._spaces) if space.glrt]
        affinities: list[Floats] | None = None
        for choice in range(max(len(choices) for choices in dims)):
            keys = [(m, dims[m][min(choice, len(dims[m]) - 1)]) for m in learning]
            if not keys or all((key, 0) in self._metrics for key in keys):
                continue
            weights = [self._spaces[m].weight for m, _ in keys]
            if affinities is None:
                # Only here: this is called for every split, and nearly always all is learnt already.
                told = [self._spaces[m].affinity(rows) for m in learning]
                affinities = [affinity for affinity in told if affinity is not None]
            parts = [self._spaces[m].unit(dim)[rows] for m, dim in keys]
            found = neighbour_metrics(parts, weights=weights, affinities=affinities)
            for key, metric in zip(keys, found, strict=True):
                for split in range(len(self._splits)):
                    self._metrics.setdefault((key, split), metric)
