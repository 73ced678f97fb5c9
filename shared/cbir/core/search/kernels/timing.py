"""How long each way to search takes on this machine: measured on the first rows of the gallery, the slow ones briefly.

All contenders run on few rows first, then on more.  One that takes three times as long as the fastest runs no further,
so that what a processor has no instructions for wastes milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

__all__ = ["BATCH", "Contender", "Search", "Times", "between", "race", "seconds_of"]

Floats = NDArray[np.float32]
#: Lists the best rows for (B, D) queries.
Search = Callable[[Floats], object]

#: Queries of a batch that is timed.
BATCH = 32
#: A contender that takes so many times as long as the fastest is measured no further.
_HOPELESS = 3.0
#: A figure is the best of so many runs, or of as many as fit into so many seconds.
_RUNS, _RUN_SECONDS = 20, 0.1


@dataclass(frozen=True)
class Contender:
    """One way to search.

    Attributes:
        prepare: Makes it ready to search the first so many rows; None: it cannot be used here.
        most: Rows beyond which its time a row does not change any more.
        least: Rows up to which it is measured however slow it is.
    """

    prepare: Callable[[int], Search | None]
    most: int
    least: int = 0


@dataclass(frozen=True)
class Times:
    """Seconds a row, for one query and for each query of a batch of ``BATCH``.

    Attributes:
        one: By way to search: for each row of the gallery.
        batch: The same in a batch, for each query.
        rescored: For each row that is listed and scored exactly: of one query, and of each query of a batch.
        listed: The part of that which a row takes that is listed and not scored.
    """

    one: Mapping[str, float]
    batch: Mapping[str, float]
    rescored: tuple[float, float]
    listed: float = 0.0

    def of(self, way: str, queries: int) -> float:
        """Seconds a row and query in a batch of ``queries``; infinite where the way was not measured."""
        if way not in self.one:
            return math.inf
        return between(self.one[way], self.batch[way], queries)

    def rescoring(self, queries: int) -> float:
        """Seconds for each row that is scored exactly, in a batch of ``queries``."""
        return between(*self.rescored, queries)


def between(one: float, batch: float, queries: int) -> float:
    """The time a query is a + s / B: each query has its own work a, and the batch shares s."""
    shared = (one - batch) * BATCH / (BATCH - 1)
    if shared <= 0:
        return batch if queries > 1 else one
    return max(one - shared, 0.0) + shared / queries


def seconds_of(call: Callable[[], object], clock: Callable[[], float] = perf_counter) -> float:
    """Seconds that a call takes: the best of several, after one that loads and allocates what it needs."""
    call()
    best, end = math.inf, clock() + _RUN_SECONDS
    for _ in range(_RUNS):
        begun = clock()
        call()
        now = clock()
        best = min(best, now - begun)
        if now >= end:
            break
    return best


def race(
    contenders: Mapping[str, Contender],
    queries: Floats,
    sizes: tuple[int, ...],
    deadline: float = math.inf,
    clock: Callable[[], float] = perf_counter,
    stop: Callable[[Mapping[str, float]], bool] = lambda one: False,
) -> tuple[dict[str, float], dict[str, float]]:
    """Time the contenders on ever more rows.

    Args:
        queries: (BATCH, D).
        sizes: Rows, rising.
        deadline: On the clock; after it, the figures that are there have to do.
        stop: Told the seconds a row of one query, says that they have to do.

    Returns:
        Seconds a row for one query, and for each query of a batch; of those that could be used.
    """
    one: dict[str, float] = {}
    batch: dict[str, float] = {}
    for size in sizes:
        if one and stop(one):
            break
        asked = ((one, queries[:1]), (batch, queries))
        slow = [_HOPELESS * min(figures.values(), default=math.inf) for figures, _ in asked]
        for name, contender in contenders.items():
            # The first has a figure in any case.
            if (name in one and size > contender.most) or (one and clock() > deadline):
                continue
            wanted = [
                (figures, part)
                for (figures, part), least in zip(asked, slow, strict=True)
                if (figures.get(name, 0.0) < least or size <= contender.least) and (name in figures or size == sizes[0])
            ]
            search = contender.prepare(size) if wanted else None
            if search is not None:
                for figures, part in wanted:
                    figures[name] = _a_row(search, part, size, clock)
    return one, batch


def _a_row(search: Search, queries: Floats, rows: int, clock: Callable[[], float]) -> float:
    return seconds_of(lambda: search(queries), clock) / (rows * len(queries))
