"""Calibration: a logistic curve from fused score to the probability of relevance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["fit_calibration", "probability_of_relevance"]

Floats = NDArray[np.float32]


def probability_of_relevance(fused: Floats, curve: tuple[float, float]) -> Floats:
    """1 / (1 + exp(-(slope * fused + offset))), of the fused scores' shape."""
    slope, offset = curve
    return np.asarray(1 / (1 + np.exp(-(slope * fused + offset))), dtype=np.float32)


def fit_calibration(fused: Floats, relevant: NDArray[np.bool_], steps: int = 100) -> tuple[float, float] | None:
    """Slope and offset of largest likelihood, by Newton's method.

    Platt, "Probabilistic Outputs for Support Vector Machines", 1999, with his smoothed targets, which keep the curve
    finite where scores separate the relevant from the rest perfectly.

    Args:
        fused: (n,) fused scores of hits whose relevance is known; hits of queries that taught neither metric nor
            heads, or the curve is too sure.
        relevant: (n,).

    Returns:
        (slope, offset), slope > 0, or None where there is nothing to tell apart: hits of one kind only, or a score
        that does not rise with relevance.
    """
    positives = int(relevant.sum())
    negatives = len(relevant) - positives
    if not positives or not negatives:
        return None
    target = np.where(relevant, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    x = np.asarray(fused, np.float64)
    centre, spread = x.mean(), x.std()
    if spread < 1e-9:
        return None
    design = np.stack([(x - centre) / spread, np.ones_like(x)], axis=1)
    theta = np.array([1.0, np.log(positives / negatives)])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(design @ theta, -35, 35)))
        gradient = design.T @ (p - target)
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + 1e-6 * np.eye(2)
        move = np.linalg.solve(hessian, gradient)
        # Damped: a full step from afar may overshoot.
        theta -= move * min(1.0, 2.0 / max(float(np.abs(move).max()), 1e-12))
        if np.abs(move).max() < 1e-8:
            break
    slope = theta[0] / spread
    if not np.isfinite(slope) or slope <= 0:
        return None
    return float(slope), float(theta[1] - slope * centre)
