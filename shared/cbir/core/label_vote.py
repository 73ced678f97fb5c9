"""P(label | query): what the neighbours' labels, linear heads on the embeddings, and class names say of a query.

Pure functions of arrays.  C classes, D components, N gallery images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbir.core.fusion import label_probabilities

__all__ = ["LinearHead", "fit_head", "head_probabilities", "mixed_probabilities", "neighbour_probabilities"]

Floats = NDArray[np.float32]

#: Relative to the mean eigenvalue of the features' covariance.
RIDGE = 0.1


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier on one member's projected vectors.

    Attributes:
        weight: (D, C) float32.
        bias: (C,) float32.
    """

    weight: Floats
    bias: Floats

    def scores(self, z: Floats) -> Floats:
        """(B, C): near 1 for a class that is likely and near 0 for others, not normalised."""
        return np.asarray(z @ self.weight + self.bias, dtype=np.float32)


def fit_head(z: Floats, codes: NDArray[np.integer], classes: int, ridge: float = RIDGE) -> LinearHead:
    """Ridge regression of class indicators, in closed form (regularised least-squares classification).

    Rifkin, Yeo, Poggio, "Regularized Least-Squares Classification", 2003: on a level with logistic regression, and
    one solve for all classes.  Every labelled image weighs the same.

    Args:
        z: (N, D) projected unit vectors.
        codes: (N,) class numbers, negative for images without a label, which are left out.

    Raises:
        ValueError: No image has a label.
    """
    known = codes >= 0
    if not known.any():
        raise ValueError("no image has a label: there is nothing to fit a head to")
    x, y = np.asarray(z[known], np.float64), codes[known]
    counts = np.bincount(y, minlength=classes).astype(np.float64)
    mean = x.mean(axis=0)
    sums = np.zeros((classes, x.shape[1]))
    np.add.at(sums, y, x)
    # With X and Y centred: XᵀY is the sum of each class less its share of the mean.
    cross = (sums - counts[:, None] * mean).T
    scatter = x.T @ x - len(x) * np.outer(mean, mean)
    scatter[np.diag_indices(len(scatter))] += ridge * np.trace(scatter) / len(scatter) + 1e-9
    weight = np.linalg.solve(scatter, cross)
    bias = counts / len(x) - mean @ weight
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32))


def head_probabilities(
    parts: Sequence[Floats], heads: Sequence[LinearHead | None], weights: Floats, temperature: float
) -> Floats | None:
    """Softmax of the members' weighted mean scores.

    Args:
        parts: One (B, D_m) a member; a zero row means that the member has no say in that query.
        heads: One a member, None where it has none.
        weights: (B, M), those of the members' votes.
        temperature: Of the softmax; scores are on the scale of class indicators.

    Returns:
        (B, C) with rows that sum to 1, or None where no member has a head; the row of a query in which no member
        with a head has a say is zero.
    """
    total: Floats | None = None
    said = np.zeros(len(weights), np.float32)
    for m, (part, head) in enumerate(zip(parts, heads, strict=True)):
        if head is None:
            continue
        share = weights[:, m] * part.any(axis=1)
        scores = share[:, None] * head.scores(part)
        total = scores if total is None else total + scores
        said += share
    if total is None:
        return None
    mean = total / np.maximum(said, 1e-12)[:, None]
    exponent = np.exp((mean - mean.max(axis=1, keepdims=True)) / temperature)
    result = exponent / exponent.sum(axis=1, keepdims=True)
    result[said <= 0] = 0
    return np.asarray(result, dtype=np.float32)


def mixed_probabilities(opinions: Mapping[str, Floats | None], shares: Mapping[str, float]) -> Floats | None:
    """The opinions' weighted mean; one that is absent (None or all zero) leaves its share to the others.

    Args:
        opinions: (C,) probabilities by name.
        shares: Non-negative, by the same names.

    Returns:
        (C,) that sums to 1, or None where nobody has an opinion.
    """
    voices = {name: p for name, p in opinions.items() if p is not None and shares[name] > 0 and p.any()}
    if not voices:
        # Nobody with a share speaks: whoever speaks at all is heard.
        voices = {name: p for name, p in opinions.items() if p is not None and p.any()}
        shares = dict.fromkeys(voices, 1.0)
    if not voices:
        return None
    total = sum(shares[name] for name in voices)
    mixed = sum((shares[name] / total * p for name, p in voices.items()), np.zeros(1))
    return np.asarray(mixed, dtype=np.float32)


def neighbour_probabilities(
    fused: Floats, codes: NDArray[np.integer], neighbours: int, temperature: float, classes: int
) -> Floats:
    """:func:`cbir.core.fusion.label_probabilities` of the ``neighbours`` best of (R,) candidates, ties to the first."""
    best = np.argsort(-fused, kind="stable")[:neighbours]
    return label_probabilities(fused[best], codes[best], temperature, classes)
