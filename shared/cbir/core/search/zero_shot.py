"""Zero-shot classification: the label of an image or of words, by the embeddings of the labels' names alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["names_trust", "zero_shot_probabilities"]

Floats = NDArray[np.float32]


def zero_shot_probabilities(vectors: Floats, classes: Floats, logit_scale: float) -> Floats:
    """P(class | vector): the softmax of scaled cosines.

    Args:
        vectors: (B, D) unit vectors of images or words.
        classes: (C, D) unit vectors of the classes' names.

    Returns:
        (B, C); every row sums to 1.
    """
    logits = logit_scale * (vectors @ classes.T)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True), dtype=np.float32)


def names_trust(accuracy: float, codes: NDArray[np.integer]) -> float:
    """How much the votes that a member casts by the names of the classes count, 0 to 1.

    Args:
        accuracy: Share of the labelled gallery images that the member classifies correctly by the names alone.
        codes: (N,) class numbers of the gallery, negative without a label.

    Returns:
        (accuracy - chance) / (1 - chance), where chance is the accuracy of always naming the largest class; 0 where the
        accuracy is not above chance by two standard errors: then the names mean nothing to the member.
    """
    counts = np.bincount(codes[codes >= 0])
    total = int(counts.sum())
    chance = counts.max() / total if total else 1.0
    if accuracy <= chance + 2 * np.sqrt(chance * (1 - chance) / max(1, total)):
        return 0.0
    return float((accuracy - chance) / (1 - chance))
