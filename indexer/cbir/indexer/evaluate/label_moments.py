"""Sums over labelled images, from which those of any fold are computed by subtraction.

The metric of a fold needs the scatter of all images outside it.  These are nearly the same images for every fold, so
they are summed once, and a fold's own images are subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbir.core.metric import glrt_metric

__all__ = ["LabelMoments"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

_BLOCK = 16_384


@dataclass(frozen=True)
class LabelMoments:
    """Sums over labelled vectors of L classes.

    Attributes:
        second: (d, d) sum of x·xᵀ.
        sums: (L, d) sum of the vectors of each class.
        counts: (L,) number of vectors of each class.
    """

    second: Doubles
    sums: Doubles
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, z: Floats, codes: NDArray[np.integer], classes: int) -> LabelMoments:
        """Sum (N, d) vectors with their class numbers, none of which may be negative."""
        second, sums = np.zeros((z.shape[1], z.shape[1])), np.zeros((classes, z.shape[1]))
        for start in range(0, len(z), _BLOCK):
            part = z[start : start + _BLOCK]
            second += part.T @ part
        order = np.argsort(codes, kind="stable")
        found, first = np.unique(codes[order], return_index=True)
        if len(found):
            sums[found] = np.add.reduceat(z[order], first, axis=0, dtype=np.float64)
        return cls(second, sums, np.bincount(codes, minlength=classes))

    def __sub__(self, other: LabelMoments) -> LabelMoments:
        return LabelMoments(self.second - other.second, self.sums - other.sums, self.counts - other.counts)

    def metric(self, ridge: float = 0.1) -> Floats:
        """The (d, d) metric that :func:`cbir.core.metric.fit_glrt` learns from these images.

        Raises:
            ValueError: No class has two images.
        """
        paired = self.counts >= 2
        if not paired.any():
            raise ValueError("no class has two images: there is no within-class covariance to estimate")
        count, there = int(self.counts.sum()), self.counts > 0
        # An image that is alone in its class equals the class mean, so it adds nothing to the scatter within classes.
        means = self.sums[there] / np.sqrt(self.counts[there])[:, None]
        within = self.second - means.T @ means
        freedom = max(1, int(self.counts[paired].sum() - paired.sum()))
        total = self.sums.sum(axis=0)
        scatter = self.second - np.outer(total, total) / count
        return glrt_metric(within / freedom, scatter / max(1, count - 1), ridge)
