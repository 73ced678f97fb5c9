"""Clusters of a gallery without labels: Ward's method, cut where the clusters stand apart best, and then once more.

Ward's method (1963) joins the two clusters whose union is least spread.  It gives clusters of like size, and needs no
random start.  The silhouette (Rousseeuw 1987), measured by distances to the clusters' means, tells how many there are.
Twice that number is taken, as the errors do not weigh the same: a class in two clusters still teaches what varies
within it, but two classes in one cluster teach that their difference does not matter.

N images, D components, K clusters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["cluster"]

Floats = NDArray[np.float32]
Codes = NDArray[np.int64]

#: Numbers of clusters that are tried, from so many images in one to so few, and how many numbers between.
_LARGEST, _SMALLEST, _TRIED = 100, 3, 24
_SPLIT = 2


def cluster(vectors: Floats) -> Codes:
    """(N,) cluster numbers from 0 of (N, D) unit vectors; some cluster has two images.

    Takes memory for the N·(N - 1) / 2 distances in float64.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    count = len(vectors)
    tree = linkage(_distances(vectors), "ward")

    def cut(clusters: int) -> Codes:
        return np.asarray(fcluster(tree, clusters, "maxclust"), np.int64) - 1

    most = max(1, count // 2)
    numbers = np.geomspace(max(2, count / _LARGEST), max(2, count / _SMALLEST), _TRIED).round().astype(int)
    # Of equals the largest number: see above.
    best = max((_silhouette(vectors, cut(number)), number) for number in np.unique(numbers.clip(max=most)).tolist())[1]
    return cut(min(_SPLIT * best, most))


def _distances(vectors: Floats) -> NDArray[np.float64]:
    """Euclidean distances as SciPy's condensed matrix, by products of matrices."""
    count = len(vectors)
    result = np.empty(count * (count - 1) // 2)
    place = 0
    for row in range(count - 1):
        cosines = vectors[row + 1 :] @ vectors[row]
        result[place : place + len(cosines)] = np.sqrt(np.maximum(0, 2 - 2 * cosines.astype(np.float64)))
        place += len(cosines)
    return result


def _silhouette(vectors: Floats, codes: Codes) -> float:
    """The mean of (b - a) / max(a, b) with the squared distances a to the own and b to the nearest other mean.

    The own mean is that of the others in the cluster; images alone in theirs count as 0.
    """
    sizes = np.bincount(codes)
    if len(sizes) < 2:
        return 0.0
    means = np.zeros((len(sizes), vectors.shape[1]), np.float32)
    np.add.at(means, codes, vectors)
    means /= sizes[:, None]
    squares = 1 - 2 * (vectors @ means.T) + np.einsum("kd,kd->k", means, means)
    rows, own_sizes = np.arange(len(vectors)), sizes[codes]
    own = squares[rows, codes] * (own_sizes / np.maximum(1, own_sizes - 1)) ** 2
    squares[rows, codes] = np.inf
    other = squares.min(axis=1)
    widths = (other - own) / np.maximum(np.maximum(other, own), 1e-12)
    return float(np.where(own_sizes > 1, widths, 0).mean())
