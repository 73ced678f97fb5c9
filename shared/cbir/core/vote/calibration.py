"""Calibration: a rising curve from fused score to the probability of relevance.

Where the class of a query is clear, the label bonus raises the scores, and where it is not, they stay low.  So scores
have two peaks, which no logistic curve fits.  Isotonic regression only assumes that relevance rises with the score.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curve", "fit_calibration", "logistic_curve", "probability_of_relevance"]

Floats = NDArray[np.float32]

#: Knots (fused score, probability), both strictly rising, joined by straight lines.
Curve = tuple[tuple[float, float], ...]

#: Most bins of the fit, and the hits that each needs.
BINS, HITS = 16, 25


def probability_of_relevance(fused: Floats, curve: Curve) -> Floats:
    """The values of the curve at fused scores of any shape; beyond its ends, the values there."""
    scores, probabilities = zip(*curve, strict=True)
    return np.asarray(np.interp(fused, scores, probabilities), dtype=np.float32)


def fit_calibration(fused: Floats, relevant: NDArray[np.bool_], top: float) -> Curve | None:
    """Binned isotonic regression.

    Hits are split by score into bins of equal count, and neighbouring bins are pooled until the share of relevant hits
    rises from bin to bin (Zadrozny and Elkan, "Transforming Classifier Scores into Accurate Multiclass Probability
    Estimates", KDD 2002).  The curve joins the bins' mean scores by straight lines instead of steps, so that different
    scores stay different.  The shares are smoothed: each bin counts one more relevant and one more irrelevant hit.

    Args:
        fused: (n,) fused scores of hits whose relevance is known.  Their queries must not have been used to fit the
            metric or the heads, or the probabilities come out too high.
        relevant: (n,).
        top: The highest possible fused score, where the probability is set to 1; at -1, the lowest cosine, it is 0.

    Returns:
        At most 18 knots from -1 to ``top``, or None where all hits are relevant, none is, or relevance does not rise
        with the score.
    """
    if not relevant.any() or relevant.all():
        return None
    x = np.asarray(fused, np.float64)
    bins = int(np.clip(len(x) // HITS, 2, BINS))
    # Equal scores get into the same bin.
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
    inner = [(total / hits, _share((total, relevant_hits, hits))) for total, relevant_hits, hits in blocks]
    return ((-1.0, 0.0), *((score, share) for score, share in inner if -1 < score < top), (float(top), 1.0))


def _share(block: tuple[float, float, int]) -> float:
    return (block[1] + 1) / (block[2] + 2)


def logistic_curve(slope: float, offset: float) -> Curve:
    """1 / (1 + exp(-(slope * fused + offset))) as a curve, to within 0.001; older versions stored slope and offset."""
    log_odds = np.linspace(-8, 8, 65)
    scores, probabilities = (log_odds - offset) / slope, 1 / (1 + np.exp(-log_odds))
    return tuple(zip(scores.tolist(), probabilities.tolist(), strict=True))
