"""The GLRT metric in closed form: a linear map after which distance tells images of one class from any two images.

GLRT stands for generalised likelihood ratio test.  N images, d components.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbir.core.metric.pca import scatter_matrix

__all__ = ["enough_labels", "fit_glrt", "glrt_metric"]

Floats = NDArray[np.float32]


def fit_glrt(z: Floats, codes: NDArray[np.integer], ridge: float = 0.1) -> Floats:
    """Fit the metric by class labels.

    The difference of two images is assumed to be distributed as N(0, 2·S_w) within a class and as N(0, 2·S_t) for any
    two, with the covariances S_w within classes and S_t in total.  The log-likelihood ratio of the two is a quadratic
    form with the matrix M = (2·S_w)⁻¹ − (2·S_t)⁻¹, whose negative eigenvalues are set to zero.  Sources: Zhang et al.,
    arXiv 2410.05773; Koestinger et al., "Large scale metric learning from equivalence constraints", CVPR 2012.

    Args:
        z: (N, d) projected unit vectors.
        codes: (N,) class numbers, negative for images without a label.
        ridge: Added to both covariances, relative to their mean eigenvalue.

    Returns:
        (d, d) float32 matrix A with M = Aᵀ·A up to scale: after x -> A·x the statistic is the Euclidean distance.

    Raises:
        ValueError: No class has two images.
    """
    mean = z.mean(axis=0, dtype=np.float64)
    return glrt_metric(_within(z, codes), scatter_matrix(z, mean) / max(1, len(z) - 1), ridge)


def glrt_metric(within: NDArray[np.float64], total: NDArray[np.float64], ridge: float = 0.1) -> Floats:
    """The metric from the covariances; see :func:`fit_glrt`.

    Args:
        within: (d, d) covariance S_w of images around the mean of their class.
        total: (d, d) covariance S_t of all images.
        ridge: As for :func:`fit_glrt`.

    Returns:
        (d, d) float32 matrix A.
    """
    dim = len(within)
    s_within, s_total = 2 * within, 2 * total
    for s in (s_within, s_total):
        s[np.diag_indices(dim)] += ridge * np.trace(s) / dim + 1e-12
    m = np.linalg.inv(s_within) - np.linalg.inv(s_total)
    values, vectors = np.linalg.eigh((m + m.T) / 2)
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    # Projected vectors are normalised, so the scale is free: a largest eigenvalue of 1 suits float16.
    root = np.sqrt(values / max(values[0], 1e-30))
    return np.asarray((vectors * root).T, dtype=np.float32)


def _within(z: Floats, codes: NDArray[np.integer]) -> NDArray[np.float64]:
    """(d, d) within-class covariance, pooled over the classes that have at least two images."""
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
    # Each class mean takes one degree of freedom.
    freedom = max(1, int(paired.sum() - (counts >= 2).sum()))
    return np.asarray(deviations.T @ deviations / freedom, dtype=np.float64)


def enough_labels(codes: NDArray[np.integer]) -> bool:
    """Whether at least two classes have two images, and such classes hold a fifth of the gallery and at least 20."""
    _, counts = np.unique(codes[codes >= 0], return_counts=True)
    pairs = counts[counts >= 2]
    return len(pairs) >= 2 and int(pairs.sum()) >= max(20, len(codes) // 5)
