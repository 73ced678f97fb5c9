"""Projection of raw embeddings: centre, PCA, and the closed-form GLRT metric.

All functions take and return plain arrays; nothing here knows a model or a file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbir.core.metric.glrt import fit_glrt
from cbir.core.metric.neighbour_metric import neighbour_metrics
from cbir.core.metric.pca import fit_pca
from cbir.core.metric.unit_vectors import normalise

__all__ = ["MIN_IMAGES", "Projection", "enough_labels", "fit_projection"]

Floats = NDArray[np.float32]

#: Below this many images a mean and principal components say more about chance than about the gallery.
MIN_IMAGES = 50


@dataclass(frozen=True)
class Projection:
    """The map every gallery and query embedding of a member goes through.

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
        """Project (B, D) raw embeddings to (B, dim) float32 unit vectors."""
        z = np.asarray(raw, dtype=np.float32) - self.mean
        if self.basis is not None:
            z = z @ self.basis
        if self.metric is not None:
            z = normalise(z) @ self.metric.T
        return normalise(z)

    def arrays(self) -> dict[str, Floats]:
        """The parts by name, for storage; :meth:`from_arrays` takes them back."""
        parts = {"mean": self.mean, "basis": self.basis, "metric": self.metric}
        return {k: np.ascontiguousarray(v) for k, v in parts.items() if v is not None}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Floats]) -> Projection:
        """Inverse of :meth:`arrays`."""
        return cls(arrays["mean"], arrays.get("basis"), arrays.get("metric"))


def fit_projection(
    raw: Floats,
    dim: int,
    metric: str,
    codes: NDArray[np.integer] | None = None,
    without_labels: Callable[[Floats], Floats] | None = None,
) -> tuple[Projection, str]:
    """Fit a member's projection on the gallery.

    Args:
        raw: (N, D) unit vectors.
        dim: Components to keep.
        metric: ``cosine``: inner products are kept as well as ``dim`` components can; ``pca``: centred on the
            gallery; ``glrt``: the latter, then the metric learnt from labels, or from neighbours without labels.
        codes: (N,) class numbers, negative where unknown; None: there are no labels.
        without_labels: Gives the metric of (N, d) projected unit vectors where labels are too few; default: from
            this member's own neighbours.

    Returns:
        The projection, and what it was fitted with: ``none``, ``gallery``, ``labels`` or ``neighbours``.
    """
    count, width = raw.shape
    zero = np.zeros(width, np.float32)
    if metric == "cosine":
        basis = fit_pca(raw, dim, centred=False)[1] if dim < width and count >= MIN_IMAGES else None
        return Projection(zero, basis, None), "gallery" if basis is not None else "none"
    if count < MIN_IMAGES:
        return Projection(zero, None, None), "none"
    mean, basis = fit_pca(raw, dim)
    if float(np.abs(raw - mean).max()) < 1e-3:
        # Images that are all alike differ by rounding only: centring would leave nothing.
        return Projection(zero, None, None), "none"
    plain = Projection(mean, basis, None)
    if metric == "pca":
        return plain, "gallery"
    z = plain.apply(raw)
    if codes is not None and enough_labels(codes):
        return Projection(mean, basis, fit_glrt(z, codes)), "labels"
    if without_labels is None:
        return Projection(mean, basis, neighbour_metrics([z])[0]), "neighbours"
    return Projection(mean, basis, without_labels(z)), "neighbours"


def enough_labels(codes: NDArray[np.integer]) -> bool:
    """Whether at least two classes have pairs, and a fifth of the gallery lies in such classes."""
    _, counts = np.unique(codes[codes >= 0], return_counts=True)
    pairs = counts[counts >= 2]
    return len(pairs) >= 2 and int(pairs.sum()) >= max(20, len(codes) // 5)
