"""The GLRT metric without labels: pairs of neighbours take the place of images of one class.

Their differences estimate the within-class covariance.  There are two rounds: neighbours by plain cosine give a first
metric; with it, and after augmentation, more neighbours are of the same class, and these give the final metric.  The
neighbours are found with all members together, each counting by its weight, so that a weak member benefits from strong
ones; in the second round, members that were trained to tell classes apart are also asked which of them an image
resembles (:func:`cbir.core.metric.class_affinity`).  On the development classes this is better than k-means clusters as
pseudo-labels, and it does not depend on a random start; Ward clusters, which need none either, are no better.

N images, d_m components of member m, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cbir.core.metric.expansion import augmented, nearest
from cbir.core.metric.glrt import glrt_metric
from cbir.core.metric.unit_vectors import normalise

__all__ = ["SAMPLE", "neighbour_metrics", "neighbour_pairs"]

Floats = NDArray[np.float32]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]

#: How many nearest neighbours are considered for pairs in the first round, and at most in the second: one for so many
#: images of the gallery, as more would reach beyond the classes of a small one.
FIRST, SECOND = 5, 20
_IMAGES_PER_NEIGHBOUR = 60
#: How much members' classifiers count when neighbours are found, all together, in parts of what the vectors do.  Soft
#: probabilities differ less from each other than embeddings do.
_CLASSIFIERS = 2.0
#: Images that suffice to estimate the covariances.
SAMPLE = 20_000
#: Neighbours and exponent of the augmentation between the rounds.
_AUGMENTATION, _EXPONENT = 5, 3.0
_BLOCK = 65_536


def neighbour_metrics(
    parts: Sequence[Floats],
    ridge: float = 0.1,
    weights: Sequence[float] | None = None,
    affinities: Sequence[Floats] = (),
) -> list[Floats]:
    """A GLRT metric for each member, fitted together.

    Args:
        parts: (N, d_m) projected unit vectors of each member, for the same N >= 2 images.
        ridge: Added to the covariances, relative to their mean eigenvalue.
        weights: How much each member counts when neighbours are found; equal by default.
        affinities: (N, any) vectors from :func:`cbir.core.metric.class_affinity`, of members that have a classifier.
            All together count twice as much as all of ``parts``.

    Returns:
        A (d_m, d_m) float32 matrix for each member, as from :func:`cbir.core.metric.glrt.fit_glrt`.
    """
    share = np.ones(len(parts), np.float32) if weights is None else np.array(weights, np.float32)
    share /= share.sum()
    dims = [part.shape[1] for part in parts]
    metrics = _fit(parts, neighbour_pairs(_joined(parts, share), FIRST), ridge)
    first = [normalise(part @ metric.T) for part, metric in zip(parts, metrics, strict=True)]
    sharp = augmented(np.concatenate(first, axis=1), dims, _AUGMENTATION, _EXPONENT, share)
    joined = _joined(np.split(sharp, np.cumsum(dims)[:-1], axis=1), share)
    if affinities:
        each = np.float32(np.sqrt(_CLASSIFIERS / len(affinities)))
        joined = normalise(np.concatenate([joined, *(affinity * each for affinity in affinities)], axis=1))
    count = min(SECOND, max(FIRST, len(joined) // _IMAGES_PER_NEIGHBOUR))
    return _fit(parts, neighbour_pairs(joined, count), ridge)


def neighbour_pairs(vectors: Floats, count: int) -> Pairs:
    """Pairs of rows of which each is among the other's ``count`` nearest; where there are none, pairs where one is.

    Args:
        vectors: (N, D) unit vectors.

    Returns:
        Two (P,) arrays of row numbers, each pair once, the smaller number first.
    """
    size = len(vectors)
    rows, _ = nearest(vectors, vectors, min(count + 1, size))
    source = np.repeat(np.arange(size), rows.shape[1])
    target = rows.ravel()
    kept = (source != target) & (target >= 0)
    source, target = source[kept], target[kept]
    keys = np.minimum(source, target) * size + np.maximum(source, target)
    distinct, found = np.unique(keys, return_counts=True)
    mutual = distinct[found == 2]
    chosen = mutual if len(mutual) else distinct
    return chosen // size, chosen % size


def _joined(parts: Sequence[Floats], share: Floats) -> Floats:
    """Unit vectors whose inner products are the members' weighted cosines."""
    return normalise(np.concatenate([part * np.sqrt(w) for part, w in zip(parts, share, strict=True)], axis=1))


def _fit(parts: Sequence[Floats], pairs: Pairs, ridge: float) -> list[Floats]:
    return [glrt_metric(_half_scatter(part, pairs), _covariance(part), ridge) for part in parts]


def _half_scatter(z: Floats, pairs: Pairs) -> NDArray[np.float64]:
    """(d, d) half the mean outer product of the pairs' differences: an estimate of the within-class covariance."""
    total = np.zeros((z.shape[1], z.shape[1]))
    for start in range(0, len(pairs[0]), _BLOCK):
        block = slice(start, start + _BLOCK)
        difference = (z[pairs[0][block]] - z[pairs[1][block]]).astype(np.float64)
        total += difference.T @ difference
    return total / (2 * max(1, len(pairs[0])))


def _covariance(z: Floats) -> NDArray[np.float64]:
    centred = z.astype(np.float64) - z.mean(axis=0, dtype=np.float64)
    return np.asarray(centred.T @ centred / max(1, len(z) - 1), dtype=np.float64)
