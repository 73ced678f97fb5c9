"""How many threads a search gets: one, unless more of them are measured to be worth the cores."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter

import numpy as np

from cbir.core.machine import search_alone
from cbir.core.search import Searcher
from cbir.core.vote import SearchSpec

__all__ = ["settle_search_threads"]

_log = logging.getLogger(__name__)

#: Seconds that more threads must save a query.  Whoever asks one query notices no less, and under load the other cores
#: have queries to decode and answers to write.
_NOTICED = 1e-3
#: The fastest of so many searches counts: the first ones touch memory for the first time.
_TRIES = 4


def settle_search_threads(searcher: Searcher, on_device: Callable[[Callable[[], None]], None] | None = None) -> None:
    """Let the thread that searches compute alone, or with others where that is clearly faster here.

    Once a process: later versions are loaded beside queries, which would wait for the trials.  Not where models run on
    torch on the processor, as it has one setting for both.

    Args:
        on_device: Runs a function on the thread that searches, and waits for it; None: run it on this one.
    """
    if not len(searcher.gallery):
        return

    def measure() -> None:
        several = _seconds(searcher)
        undo = search_alone()
        one = _seconds(searcher)
        if pays := one - several > _NOTICED:
            undo()
        _log.info(
            "one query is searched in %.2f ms by one thread and in %.2f ms by several: %s", 1000 * one, 1000 * several,
            "several" if pays else "one",
        )  # fmt: skip

    measure() if on_device is None else on_device(measure)


def _seconds(searcher: Searcher) -> float:
    """Of the fastest of several searches for the gallery's own images."""
    rows = np.linspace(0, len(searcher.gallery) - 1, _TRIES).astype(int).tolist()
    fastest = float("inf")
    for vector in searcher.vectors_of(rows):
        begun = perf_counter()
        searcher.search(vector[None], [SearchSpec()])
        fastest = min(fastest, perf_counter() - begun)
    return fastest
