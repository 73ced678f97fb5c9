"""Which classes that its network was trained on an image resembles: a witness of who is of one kind with whom.

A network that was trained to tell classes apart sees more in its own classifier than in the cosine of its embeddings,
for images of other classes too: two pictures of a lotus look to it like the same mixture of flowers it knows.  As part
of the compared vectors the mixture does harm, because it is the same for all kinds of what the network has no class
for; it is only asked when the metric without labels looks for neighbours.

N images, D raw components, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbir.core.metric.pca import fit_pca
from cbir.core.metric.vectors import Vectors

__all__ = ["class_affinity"]

Floats = NDArray[np.float32]

#: Components that are kept: inner products change by thousandths.
_COMPONENTS = 256
_BLOCK = 4096


def class_affinity(raw: Vectors, classifier: Floats) -> Floats:
    """Vectors whose inner products tell how much the images' classes agree, 1 for the same mixture.

    It is the Bhattacharyya coefficient, the sum over classes of sqrt(p q), of probabilities p and q by the softmax of
    the scores.  An embedding has lost its length, which a network's scores grow with, so they are measured in their own
    standard deviations: a gallery of classes that the network knows gets surer probabilities than one of others.

    Args:
        raw: (N, D) unit vectors; of what is no array, slices are taken.
        classifier: (C, D) its directions of the classes.

    Returns:
        (N, at most 256) float32, nearly of unit length.
    """
    count = len(raw)
    rows = [slice(start, start + _BLOCK) for start in range(0, count, _BLOCK)]
    spread = sum(float((raw[part] @ classifier.T).std(axis=1, dtype=np.float64).sum()) for part in rows) / max(1, count)
    directions = classifier.T / np.float32(max(spread, 1e-12))
    roots = np.empty((count, len(classifier)), np.float32)
    for part in rows:
        scores = raw[part] @ directions
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        roots[part] = np.sqrt(chances / chances.sum(axis=1, keepdims=True))
    _, basis = fit_pca(roots, _COMPONENTS, centred=False)
    return roots @ basis
