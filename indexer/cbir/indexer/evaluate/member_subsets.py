"""What each member contributes: measures of subsets of the ensemble, by giving queries other weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from cbir.core.evaluation import Measures, bootstrap_interval
from cbir.core.search import Searcher
from cbir.indexer.build import Progress
from cbir.indexer.evaluate.answers import Judge, ask, measured
from cbir.indexer.evaluate.query_set import QuerySet

__all__ = ["MemberGain", "SubsetTable", "choose_subsets", "measure_subsets", "subset_weights"]

#: Up to so many members, every subset is measured (63 subsets of 6 members).
MOST_MEMBERS = 6

Subset = tuple[str, ...]


@dataclass(frozen=True)
class MemberGain:
    """What the ensemble loses in MAP@10 without one member.

    Attributes:
        interval: 95 % bootstrap interval of the gain, paired by query.
    """

    member: str
    without: float
    gain: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class SubsetTable:
    """The measures by subset.

    Attributes:
        subsets: Measures by the members of the subset, in the ensemble's order.
        gains: The gain of each member; empty for an ensemble of one.
        complete: Whether all possible subsets were measured.
    """

    subsets: Mapping[Subset, Measures]
    gains: tuple[MemberGain, ...]
    complete: bool


def choose_subsets(members: Sequence[str]) -> tuple[list[Subset], bool]:
    """The subsets to measure, and whether these are all.

    With many members they are only: each member alone, all but one, and all.
    """
    count = len(members)
    complete = count <= MOST_MEMBERS
    sizes = range(1, count + 1) if complete else (1, count - 1, count)
    return [subset for size in sizes for subset in combinations(members, size)], complete


def subset_weights(weights: NDArray[np.float32], members: Sequence[str], subset: Subset) -> NDArray[np.float32]:
    """(M,) weights that are 0 outside the subset; equal weights if all weights inside it are 0."""
    mask = np.array([member in subset for member in members], np.float32)
    kept = np.asarray(weights * mask, dtype=np.float32)
    return kept if kept.any() else mask


def measure_subsets(
    retriever: Searcher,
    queries: QuerySet,
    judge: Judge,
    known: Mapping[Subset, Measures],
    on_progress: Callable[[Progress], None] | None = None,
) -> SubsetTable:
    """Search with every subset.

    Args:
        known: Measures of subsets that are known already.
    """
    chosen, complete = choose_subsets(retriever.members)
    todo = [subset for subset in chosen if subset not in known]
    results = dict(known)
    for i, subset in enumerate(todo):
        if on_progress is not None:
            on_progress(Progress("measure subsets", i, len(todo)))
        weights = subset_weights(retriever.weights, retriever.members, subset)
        results[subset] = measured(ask(retriever, queries, judge, weights), queries.labels)
    everybody = results[tuple(retriever.members)]
    gains = []
    if len(retriever.members) > 1:
        for member in retriever.members:
            rest = results[tuple(m for m in retriever.members if m != member)]
            difference = np.subtract(everybody.ap, rest.ap)
            gains.append(
                MemberGain(member, rest.map_at_10, float(difference.mean()), bootstrap_interval(difference.tolist()))
            )
    return SubsetTable({subset: results[subset] for subset in chosen}, tuple(gains), complete)
