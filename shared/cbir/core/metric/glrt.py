"""The closed-form GLRT metric: a likelihood ratio tells pairs of one class from any two images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbir.core.metric.pca import scatter_matrix

__all__ = ["fit_glrt", "glrt_metric"]

Floats = NDArray[np.float32]


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
    return glrt_metric(_within(z, codes), scatter_matrix(z, mean) / max(1, len(z) - 1), ridge)


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
