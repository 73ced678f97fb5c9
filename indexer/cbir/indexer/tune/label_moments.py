"""Sums over labelled images, from which those of any fold follow by subtraction.

A metric that never saw a fold's labels needs the scatter of all other images.  Nearly all of these are in the next
fold's sums too, so they are added up once, and a fold's own images are taken out again.
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
    """Of labelled vectors in L classes.

    Attributes:
        second: (d, d) sum of x·xᵀ.
        sums: (L, d) of each class.
        counts: (L,) images of each class.
    """

    second: Doubles
    sums: Doubles
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, z: Floats, codes: NDArray[np.integer], classes: int) -> LabelMoments:
        """Add up (N, d) vectors with their class numbers, none of which is negative."""
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
        """(d, d) what :func:`cbir.core.metric.fit_glrt` learns from these images.

        Raises:
            ValueError: No class has two images.
        """
        paired = self.counts >= 2
        if not paired.any():
            raise ValueError("no class has two images: there is no within-class covariance to estimate")
        count, there = int(self.counts.sum()), self.counts > 0
        # An image that is alone in its class is its mean: it adds nothing here, as it should.
        means = self.sums[there] / np.sqrt(self.counts[there])[:, None]
        within = self.second - means.T @ means
        freedom = max(1, int(self.counts[paired].sum() - paired.sum()))
        total = self.sums.sum(axis=0)
        scatter = self.second - np.outer(total, total) / count
        return glrt_metric(within / freedom, scatter / max(1, count - 1), ridge)
