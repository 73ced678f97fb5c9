"""Linear heads: classifiers on the members' projected vectors, which take part in the label vote.

B queries, M members, C classes, D components, N gallery images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import brief

__all__ = ["Heads", "LinearHead", "fit_head"]

Floats = NDArray[np.float32]

#: Ridge of the regression, relative to the mean eigenvalue of the covariance of the vectors.
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
        """(B, C) for (B, D) vectors: near 1 for a likely class, near 0 for others; not probabilities."""
        return np.asarray(z @ self.weight + self.bias, dtype=np.float32)


class Heads:
    """The heads of all members, joined into one matrix: one product gives their weighted mean.

    Args:
        heads: One a member, None where it has none; at least one is not None.
        dims: Components of each member.
    """

    def __init__(self, heads: Sequence[LinearHead | None], dims: Sequence[int]) -> None:
        classes = next(len(head.bias) for head in heads if head is not None)
        self._weight = np.concatenate([
            np.zeros((dim, classes), np.float32) if head is None else head.weight
            for head, dim in zip(heads, dims, strict=True)
        ])  # fmt: skip
        self._biases = np.stack([np.zeros(classes, np.float32) if head is None else head.bias for head in heads])
        self._there = np.array([head is not None for head in heads])
        self._stops = np.cumsum((0, *dims))

    def probabilities(self, queries: Floats, weights: Floats, temperature: float) -> Floats:
        """Softmax of the members' weighted mean scores.

        Args:
            queries: (B, sum of dims) the members' vectors side by side; a member whose part is zero does not count.
            weights: (B, M) of the members.
            temperature: Of the softmax; the scores are about 0 to 1.

        Returns:
            (B, C) with rows that sum to 1; a zero row where no member with a head counts.
        """
        weighted, shares = np.empty_like(queries), np.empty_like(weights)
        _weigh(queries, weights, self._there, self._stops, weighted, shares)
        scores: Floats = weighted @ self._weight
        _softmax(scores, shares, self._biases, temperature)
        return scores


@brief
def _weigh(
    queries: Floats,
    weights: Floats,
    there: NDArray[np.bool_],
    stops: NDArray[np.int64],
    weighted: Floats,
    shares: Floats,
) -> None:
    """Set ``shares`` (B, M), which sum to 1 or are all zero, and ``weighted``: the queries multiplied by them.

    Args:
        there: (M,) members that have a head.
        stops: (M + 1,) columns where the members' parts of a query begin and end.
    """
    for b in range(queries.shape[0]):
        total = 0.0
        for m in range(len(there)):
            counts = there[m] and queries[b, stops[m] : stops[m + 1]].any()
            shares[b, m] = weights[b, m] if counts else 0
            total += shares[b, m]
        for m in range(len(there)):
            shares[b, m] /= max(total, 1e-12)
            for d in range(stops[m], stops[m + 1]):
                weighted[b, d] = queries[b, d] * shares[b, m]


@brief
def _softmax(scores: Floats, shares: Floats, biases: Floats, temperature: float) -> None:
    """Add the (M, C) biases by the shares and take the softmax of each row, in place; zeros where all shares are."""
    for b in range(scores.shape[0]):
        for m in range(shares.shape[1]):
            for c in range(scores.shape[1]):
                scores[b, c] += shares[b, m] * biases[m, c]
        top, there = scores[b].max(), shares[b].any()
        total = 0.0
        for c in range(scores.shape[1]):
            scores[b, c] = np.exp((scores[b, c] - top) / temperature) if there else 0
            total += scores[b, c]
        for c in range(scores.shape[1]):
            scores[b, c] /= max(total, 1e-30)


def fit_head(z: Floats, codes: NDArray[np.integer], classes: int, ridge: float = RIDGE) -> LinearHead:
    """Fit a head by ridge regression of class indicators, in closed form (regularised least-squares classification).

    It is about as accurate as logistic regression, and one linear solve fits all classes (Rifkin, Yeo, Poggio,
    "Regularized Least-Squares Classification", 2003).  All labelled images have the same weight.

    Args:
        z: (N, D) projected unit vectors.
        codes: (N,) class numbers; images with a negative one have no label and are left out.

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
    order = np.argsort(y, kind="stable")
    found, first = np.unique(y[order], return_index=True)
    sums[found] = np.add.reduceat(x[order], first, axis=0)
    # For centred X and Y, XᵀY is the sum of each class's vectors minus its count times the mean.
    cross = (sums - counts[:, None] * mean).T
    scatter = x.T @ x - len(x) * np.outer(mean, mean)
    scatter[np.diag_indices(len(scatter))] += ridge * np.trace(scatter) / len(scatter) + 1e-9
    weight = np.linalg.solve(scatter, cross)
    bias = counts / len(x) - mean @ weight
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32))
