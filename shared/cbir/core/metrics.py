"""Retrieval measures, as pure functions of relevance.

Conventions: AP@k divides by min(R, k), R the relevant gallery images of the query; queries with R = 0 are left out
and counted; a list shorter than k leaves the missing ranks irrelevant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CONVENTIONS",
    "Measures",
    "average_precision",
    "cmc",
    "measure",
    "precision",
    "r_average_precision",
    "recall",
]

Relevance = NDArray[np.bool_]

#: Goes with every published figure.
CONVENTIONS = {
    "relevance": "same label as the query",
    "map@10": "mean over queries with R > 0 of sum_{i<=10} P(i)·rel(i) / min(R, 10)",
    "self": "images with the bytes of the query never count as hits",
    "ties": "broken by image id",
    "no_relevant": "queries without a relevant gallery image are left out and counted",
}


def average_precision(relevant: Relevance, total: int, k: int) -> float:
    """AP@k of one ranked list.

    Args:
        relevant: (n,) whether the image at each rank is relevant, best first.
        total: R > 0, the relevant images in the gallery.
    """
    top = relevant[:k]
    precision_at = np.cumsum(top) / np.arange(1, len(top) + 1)
    return float((precision_at * top).sum() / min(total, k))


def precision(relevant: Relevance, k: int) -> float:
    """P@k: relevant images among the first k, over k."""
    return float(relevant[:k].sum() / k)


def recall(relevant: Relevance, total: int, k: int) -> float:
    """Recall@k: the share of the R relevant images that is among the first k."""
    return float(relevant[:k].sum() / total)


def cmc(relevant: Relevance, k: int) -> float:
    """CMC@k: 1 if a relevant image is among the first k, else 0."""
    return float(relevant[:k].any())


def r_average_precision(relevant: Relevance, total: int) -> float:
    """AP@R (Musgrave et al., "A Metric Learning Reality Check", ECCV 2020): AP@k with k = R."""
    return average_precision(relevant, total, total)


@dataclass(frozen=True)
class Measures:
    """Means over the queries that have a relevant gallery image; all are fractions of 1.

    Attributes:
        queries: Queries that count.
        without_relevant: Queries left out.
        per_class: MAP@10 by label.
        ap: AP@10 of every query that counts, in order.
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

    def to_json(self) -> dict[str, object]:
        """The figures by their published names, without the per-query list."""
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
        lists: Relevance by rank, one array a query; for MAP@R at least R long where the gallery allows.
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
    )
