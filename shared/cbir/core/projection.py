"""Projection of raw embeddings: centre, PCA, and the closed-form GLRT metric.

All functions take and return plain arrays; nothing here knows a model or a file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbir.core.jit import jit

__all__ = [
    "Projection",
    "enough_labels",
    "fit_glrt",
    "fit_pca",
    "fit_projection",
    "glrt_metric",
    "make_unit",
    "normalise",
]

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


def normalise(x: Floats) -> Floats:
    """Scale the rows of (N, D) to unit length; zero rows stay zero."""
    result = np.array(x, np.float32, order="C")
    make_unit(result)
    return result


@jit
def make_unit(x: Floats) -> bool:
    """Scale the rows of (N, D) to unit length, in place; whether each has a length that is finite and not 0."""
    whole = True
    for row in x:
        total = 0.0
        for d in range(len(row)):
            total += np.float64(row[d]) * row[d]
        norm = np.sqrt(total)
        whole = whole and 0 < norm < np.inf
        row /= max(norm, 1e-12)
    return whole


def fit_pca(x: Floats, dim: int, *, centred: bool = True) -> tuple[Floats, Floats]:
    """Principal components of the rows of (N, D).

    Args:
        dim: Components to keep; at most min(N, D) are.
        centred: False keeps the origin, which preserves inner products best.

    Returns:
        mean (D,) and basis (D, kept) with components by falling variance.
    """
    mean = x.mean(axis=0, dtype=np.float64) if centred else np.zeros(x.shape[1])
    scatter = _scatter(x, mean)
    _, vectors = np.linalg.eigh(scatter)
    kept = min(dim, *x.shape)
    basis = vectors[:, ::-1][:, :kept]
    # The sign of an eigenvector is arbitrary: fixing it keeps versions reproducible.
    signs = np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(kept)])
    return mean.astype(np.float32), (basis * np.where(signs == 0, 1, signs)).astype(np.float32)


def _scatter(x: Floats, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of (x - mean)(x - mean)ᵀ, in blocks so that a memory map is never copied whole."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), 16384):
        block = (x[start : start + 16384] - mean).astype(np.float32)
        total += block.T @ block
    return total


def fit_glrt(z: Floats, codes: NDArray[np.integer], ridge: float = 0.1) -> Floats:
    """Closed-form GLRT metric from class labels.

    With d = x - y, d ~ N(0, 2·S_w) for images of one class and N(0, 2·S_t) for any two; the log-likelihood ratio is
    a quadratic form with matrix M = (2·S_w)⁻¹ − (2·S_t)⁻¹, clipped to the positive semidefinite cone.  Zhang et al.,
    arXiv 2410.05773; Koestinger et al., "Large scale metric learning from equivalence constraints", CVPR 2012.

    Args:
        z: (N, d) projected unit vectors.
        codes: (N,) class numbers, negative for images without a label.
        ridge: Added to both covariances, relative to their mean eigenvalue.

    Returns:
        (d, d) float32 matrix A with M = Aᵀ·A, so that x -> A·x makes the statistic a plain distance.

    Raises:
        ValueError: No class has two images.
    """
    mean = z.mean(axis=0, dtype=np.float64)
    return glrt_metric(_within(z, codes), _scatter(z, mean) / max(1, len(z) - 1), ridge)


def glrt_metric(within: NDArray[np.float64], total: NDArray[np.float64], ridge: float = 0.1) -> Floats:
    """The closed form from the covariances themselves; see :func:`fit_glrt`.

    Args:
        within: (d, d) covariance of an image around its class.
        total: (d, d) covariance of all images.

    Returns:
        (d, d) float32.
    """
    dim = len(within)
    s_within, s_total = 2 * within, 2 * total
    for s in (s_within, s_total):
        s[np.diag_indices(dim)] += ridge * np.trace(s) / dim + 1e-12
    m = np.linalg.inv(s_within) - np.linalg.inv(s_total)
    values, vectors = np.linalg.eigh((m + m.T) / 2)
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    # The common scale is free, as the result is normalised; one keeps float16 safe.
    root = np.sqrt(values / max(values[0], 1e-30))
    return np.asarray((vectors * root).T, dtype=np.float32)


def _within(z: Floats, codes: NDArray[np.integer]) -> NDArray[np.float64]:
    """(d, d) pooled within-class covariance of the classes that have at least two images."""
    known = codes >= 0
    classes, inverse, counts = np.unique(codes[known], return_inverse=True, return_counts=True)
    if not (counts >= 2).any():
        raise ValueError("no class has two images: there is no within-class covariance to estimate")
    labelled = np.asarray(z[known], dtype=np.float64)
    means = np.zeros((len(classes), z.shape[1]))
    np.add.at(means, inverse, labelled)
    means /= counts[:, None]
    paired = counts[inverse] >= 2
    deviations = labelled[paired] - means[inverse[paired]]
    # One degree of freedom a class went into its mean.
    freedom = max(1, int(paired.sum() - (counts >= 2).sum()))
    return np.asarray(deviations.T @ deviations / freedom, dtype=np.float64)


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
        from cbir.core.neighbour_metric import neighbour_metrics

        return Projection(mean, basis, neighbour_metrics([z])[0]), "neighbours"
    return Projection(mean, basis, without_labels(z)), "neighbours"


def enough_labels(codes: NDArray[np.integer]) -> bool:
    """Whether at least two classes have pairs, and a fifth of the gallery lies in such classes."""
    _, counts = np.unique(codes[codes >= 0], return_counts=True)
    pairs = counts[counts >= 2]
    return len(pairs) >= 2 and int(pairs.sum()) >= max(20, len(codes) // 5)
