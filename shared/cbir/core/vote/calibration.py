"""Calibration: a rising curve from fused score to the probability of relevance.

The label vote makes two kinds of queries, those whose class is clear and those whose class is not, and so two humps of
scores, which no logistic curve fits.  Isotonic regression assumes nothing but that relevance rises with the score.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curve", "fit_calibration", "logistic_curve", "probability_of_relevance"]

Floats = NDArray[np.float32]

#: Knots (fused score, probability), both strictly rising; straight lines between them.
Curve = tuple[tuple[float, float], ...]

#: Bins of the fit, and the hits that each needs.
BINS, HITS = 16, 25


def probability_of_relevance(fused: Floats, curve: Curve) -> Floats:
    """The curve at the fused scores, of their shape; beyond the ends its end values."""
    scores, probabilities = zip(*curve, strict=True)
    return np.asarray(np.interp(fused, scores, probabilities), dtype=np.float32)


def fit_calibration(fused: Floats, relevant: NDArray[np.bool_], top: float) -> Curve | None:
    """Binned isotonic regression.

    Hits are sorted into bins of equal count; neighbouring bins whose relevance falls are pooled until none does
    (Zadrozny and Elkan, "Transforming Classifier Scores into Accurate Multiclass Probability Estimates", KDD 2002).
    The curve runs through the bins' mean scores, by straight lines in place of steps, so that different scores stay
    different.  A bin's share of relevant hits is taken after Laplace, with one hit more of either kind.

    Args:
        fused: (n,) fused scores of hits whose relevance is known; hits of queries that taught neither metric nor
            heads, or the curve is too sure.
        relevant: (n,).
        top: The highest fused score there can be, at which relevance is taken for sure; at -1, the lowest cosine, it
            is taken to be none.

    Returns:
        At most 18 knots from -1 to ``top``, or None where there is nothing to tell apart: hits of one kind only, or
        a score that does not rise with relevance.
    """
    if not relevant.any() or relevant.all():
        return None
    x = np.asarray(fused, np.float64)
    bins = int(np.clip(len(x) // HITS, 2, BINS))
    # Equal scores fall into one bin.
    place = np.searchsorted(np.quantile(x, np.arange(1, bins) / bins), x, side="right")
    blocks: list[tuple[float, float, int]] = []  # sum of scores, relevant hits, hits
    for number in np.unique(place):
        hits = place == number
        block = float(x[hits].sum()), float(relevant[hits].sum()), int(hits.sum())
        while blocks and _share(block) <= _share(blocks[-1]):
            before = blocks.pop()
            block = before[0] + block[0], before[1] + block[1], before[2] + block[2]
        blocks.append(block)
    if len(blocks) < 2:
        return None
    inner = [(total / hits, _share((total, right, hits))) for total, right, hits in blocks]
    return ((-1.0, 0.0), *((score, share) for score, share in inner if -1 < score < top), (float(top), 1.0))


def _share(block: tuple[float, float, int]) -> float:
    return (block[1] + 1) / (block[2] + 2)


def logistic_curve(slope: float, offset: float) -> Curve:
    """1 / (1 + exp(-(slope * fused + offset))) by straight lines, to within 0.001: what older versions stored."""
    log_odds = np.linspace(-8, 8, 65)
    scores, probabilities = (log_odds - offset) / slope, 1 / (1 + np.exp(-log_odds))
    return tuple(zip(scores.tolist(), probabilities.tolist(), strict=True))
