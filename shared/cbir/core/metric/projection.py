"""Projection of raw embeddings: centring, PCA and the GLRT metric, each fitted on the gallery.

B or N vectors, D raw components, d projected components.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import brief_or_long
from cbir.core.metric.glrt import enough_labels, fit_glrt
from cbir.core.metric.neighbour_metric import neighbour_metrics
from cbir.core.metric.pca import fit_pca
from cbir.core.metric.unit_vectors import normalise
from cbir.core.metric.vectors import Vectors

__all__ = ["MIN_IMAGES", "Projection", "fit_projection"]

Floats = NDArray[np.float32]

#: Fewer images are not centred and get no PCA: their mean and principal components would be mostly chance.
MIN_IMAGES = 50
#: Rows that are projected at a time.
_BLOCK = 16_384


@dataclass(frozen=True)
class Projection:
    """The map from a member's raw embeddings, of gallery and queries alike, to the vectors that are compared.

    ``z = unit(metric · unit(basisᵀ · (x − mean)))`` for a raw unit vector x.

    Attributes:
        mean: (D,) float32; zeros where the gallery is not centred.
        basis: (D, d) float32 orthonormal columns, or None for the identity.
        metric: (d, d) float32, or None for plain cosine.
    """

    mean: Floats
    basis: Floats | None
    metric: Floats | None

    @property
    def dim(self) -> int:
        """Length of a projected vector."""
        return int(self.mean.shape[0] if self.basis is None else self.basis.shape[1])

    def apply(self, raw: Floats) -> Floats:
        """Project (B, D) raw embeddings to (B, d) float32 unit vectors."""
        if raw.shape[1] != len(self.mean):
            raise ValueError(f"embeddings of {raw.shape[1]} components, of {len(self.mean)} that are projected")
        z = np.empty(raw.shape, np.float32)
        _centre(np.ascontiguousarray(raw, np.float32), self.mean, z)
        if self.basis is not None:
            z = z @ self.basis
        if self.metric is not None:
            z = normalise(z) @ self.metric.T
        return normalise(z)

    def arrays(self) -> dict[str, Floats]:
        """The arrays by name, for storage."""
        parts = {"mean": self.mean, "basis": self.basis, "metric": self.metric}
        return {k: np.ascontiguousarray(v) for k, v in parts.items() if v is not None}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Floats]) -> Projection:
        """Inverse of :meth:`arrays`."""
        return cls(arrays["mean"], arrays.get("basis"), arrays.get("metric"))


@brief_or_long
def _centre(raw: Floats, mean: Floats, centred: Floats) -> None:
    for row in range(raw.shape[0]):
        for d in range(raw.shape[1]):
            centred[row, d] = raw[row, d] - mean[d]


def fit_projection(
    raw: Vectors,
    dim: int,
    metric: str,
    codes: NDArray[np.integer] | None = None,
    without_labels: Callable[[Floats], Floats] | None = None,
) -> tuple[Projection, str]:
    """Fit a member's projection on the gallery.

    Args:
        raw: (N, D) unit vectors; of what is no array, slices are taken.
        dim: Components to keep.
        metric: ``cosine``: PCA without centring, which preserves inner products best; ``pca``: centring and PCA;
            ``glrt``: these and the metric, fitted by labels or, where they are too few, by neighbours.
        codes: (N,) class numbers, negative where unknown; None without labels.
        without_labels: Returns the metric for (N, d) projected unit vectors where labels are too few; by default it is
            fitted by this member's own neighbours.

    Returns:
        The projection, and what it was fitted on: ``none``, ``gallery``, ``labels`` or ``neighbours``.
    """
    count, width = raw.shape
    zero = np.zeros(width, np.float32)
    if metric == "cosine":
        basis = fit_pca(raw, dim, centred=False)[1] if dim < width and count >= MIN_IMAGES else None
        return Projection(zero, basis, None), "gallery" if basis is not None else "none"
    if count < MIN_IMAGES:
        return Projection(zero, None, None), "none"
    mean, basis = fit_pca(raw, dim)
    blocks = [slice(start, start + _BLOCK) for start in range(0, count, _BLOCK)]
    if max(float(np.abs(raw[block] - mean).max()) for block in blocks) < 1e-3:
        # The images are all alike and differ by rounding only: nothing would be left after centring.
        return Projection(zero, None, None), "none"
    plain = Projection(mean, basis, None)
    if metric == "pca":
        return plain, "gallery"
    z = np.concatenate([plain.apply(raw[block]) for block in blocks])
    if codes is not None and enough_labels(codes):
        return Projection(mean, basis, fit_glrt(z, codes)), "labels"
    if without_labels is None:
        return Projection(mean, basis, neighbour_metrics([z])[0]), "neighbours"
    return Projection(mean, basis, without_labels(z)), "neighbours"
