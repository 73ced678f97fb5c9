"""Retrieval measures, as pure functions of which hits are relevant.

Conventions: AP@k divides by min(R, k), where R is the number of gallery images that are relevant for the query; queries
with R = 0 are left out and counted; where a list is shorter than k, its missing ranks count as irrelevant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CONVENTIONS",
    "Measures",
    "Reliability",
    "average_precision",
    "bootstrap_interval",
    "calibration_error",
    "cmc",
    "measure",
    "precision",
    "r_average_precision",
    "recall",
    "reliability",
]

Relevance = NDArray[np.bool_]

#: Most values that the bootstrap draws at a time, to bound its memory.
_MAX_DRAWN = 2**22

#: How the figures are computed; published with them.
CONVENTIONS = {
    "relevance": "same label as the query",
    "map@10": "mean over queries with R > 0 of sum_{i<=10} P(i)·rel(i) / min(R, 10)",
    "self": "images with the bytes of the query never count as hits",
    "duplicates": "an image counts once in a list of hits",
    "short_lists": "ranks that a list of fewer than ten hits leaves empty count as irrelevant",
    "ties": "broken by image id",
    "no_relevant": "queries without a relevant gallery image are left out and counted",
    "macro_map@10": "mean over classes of the class's MAP@10",
}


def average_precision(relevant: Relevance, total: int, k: int) -> float:
    """AP@k of one ranked list.

    Args:
        relevant: (n,) whether the image at each rank is relevant, best first.
        total: R > 0, the number of relevant images in the gallery.
    """
    top = relevant[:k]
    precision_at = np.cumsum(top) / np.arange(1, len(top) + 1)
    return float((precision_at * top).sum() / min(total, k))


def precision(relevant: Relevance, k: int) -> float:
    """P@k: the number of relevant images among the first k, divided by k."""
    return float(relevant[:k].sum() / k)


def recall(relevant: Relevance, total: int, k: int) -> float:
    """Recall@k: the share of the R relevant images that are among the first k."""
    return float(relevant[:k].sum() / total)


def cmc(relevant: Relevance, k: int) -> float:
    """CMC@k: 1 if a relevant image is among the first k, else 0."""
    return float(relevant[:k].any())


def r_average_precision(relevant: Relevance, total: int) -> float:
    """AP@R (Musgrave et al., "A Metric Learning Reality Check", ECCV 2020): AP@k with k = R."""
    return average_precision(relevant, total, total)


@dataclass(frozen=True)
class Measures:
    """Means over the queries that have a relevant gallery image, each in 0..1.

    Attributes:
        queries: Number of these queries.
        without_relevant: Number of queries without a relevant image, which are left out.
        per_class: MAP@10 by label.
        ap: AP@10 of each query, in their order.
        precision_by_rank: P@1 to P@10.
    """

    queries: int
    without_relevant: int
    map_at_10: float
    precision_at_10: float
    recall_at_10: float
    cmc_at_1: float
    map_at_r: float
    macro_map_at_10: float
    per_class: dict[str, float]
    ap: tuple[float, ...]
    precision_by_rank: tuple[float, ...]

    def to_json(self) -> dict[str, object]:
        """The figures by their published names, without those by query, class and rank."""
        return {
            "map@10": self.map_at_10,
            "p@10": self.precision_at_10,
            "recall@10": self.recall_at_10,
            "cmc@1": self.cmc_at_1,
            "map@r": self.map_at_r,
            "macro_map@10": self.macro_map_at_10,
        }


def measure(lists: Sequence[Relevance], totals: Sequence[int], labels: Sequence[str]) -> Measures:
    """All measures of a set of queries.

    Args:
        lists: For each query, whether the image at each rank is relevant; MAP@R needs at least R ranks where the
            gallery has as many.
        totals: R of each query.
        labels: Label of each query.
    """
    counted = [i for i, total in enumerate(totals) if total > 0]
    ap = [average_precision(lists[i], totals[i], 10) for i in counted]
    by_class: dict[str, list[float]] = {}
    for i, value in zip(counted, ap, strict=True):
        by_class.setdefault(labels[i], []).append(value)
    per_class = {label: float(np.mean(values)) for label, values in sorted(by_class.items())}

    def mean(values: list[float]) -> float:
        return float(np.mean(values)) if values else 0.0

    return Measures(
        queries=len(counted),
        without_relevant=len(totals) - len(counted),
        map_at_10=mean(ap),
        precision_at_10=mean([precision(lists[i], 10) for i in counted]),
        recall_at_10=mean([recall(lists[i], totals[i], 10) for i in counted]),
        cmc_at_1=mean([cmc(lists[i], 1) for i in counted]),
        map_at_r=mean([r_average_precision(lists[i], totals[i]) for i in counted]),
        macro_map_at_10=mean(list(per_class.values())),
        per_class=per_class,
        ap=tuple(ap),
        precision_by_rank=tuple(mean([precision(lists[i], k) for i in counted]) for k in range(1, 11)),
    )


def bootstrap_interval(
    values: Sequence[float], resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean (Efron, "Bootstrap Methods", Annals of Statistics 1979).

    Args:
        values: One a query, such as AP@10, or the difference between two rankings of the query.
        resamples: How many sets, each of as many values, are drawn with replacement.
        level: Share of the sets' means that lie in the interval.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: There are no values.
    """
    array = np.asarray(values, np.float64)
    if not array.size:
        raise ValueError("there are no values: an interval needs at least one")
    rng = np.random.default_rng(seed)
    block = max(1, _MAX_DRAWN // array.size)
    means = np.concatenate(
        [
            array[rng.integers(0, array.size, (min(block, resamples - start), array.size))].mean(axis=1)
            for start in range(0, resamples, block)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Reliability:
    """Reliability diagram: scores and observed relevance, in B bins of equal width over 0..1.

    Attributes:
        counts: (B,) number of scores in each bin.
        mean_score: (B,) their mean; 0 where the bin is empty.
        observed: (B,) share of the bin's hits that are relevant; 0 where the bin is empty.
    """

    counts: NDArray[np.int64]
    mean_score: NDArray[np.float64]
    observed: NDArray[np.float64]


def reliability(scores: NDArray[np.floating], relevant: Relevance, bins: int = 10) -> Reliability:
    """Sort scores into B = ``bins`` bins; bin i holds i/B <= score < (i+1)/B, and the last one also a score of 1.

    Args:
        scores: (n,) in 0..1.
        relevant: (n,) whether each hit is relevant.
    """
    exact = np.asarray(scores, np.float64)
    place = np.clip((exact * bins).astype(np.int64), 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    filled = np.maximum(counts, 1)
    return Reliability(
        counts,
        np.bincount(place, exact, minlength=bins) / filled,
        np.bincount(place, relevant.astype(np.float64), minlength=bins) / filled,
    )


def calibration_error(scores: NDArray[np.floating], relevant: Relevance, bins: int = 10) -> float:
    """Expected calibration error: the mean gap between a bin's mean score and observed relevance, weighted by count.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.  0 where there are no scores.
    """
    table = reliability(scores, relevant, bins)
    gaps = np.abs(table.mean_score - table.observed)
    return float((gaps * table.counts).sum() / max(1, table.counts.sum()))
