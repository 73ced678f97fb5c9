"""How many threads a search gets: one, unless more of them are measured to be worth the cores."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter, sleep

import numpy as np

from cbir.core.machine import NOTICED_MS, compute_alone, search_alone
from cbir.core.search import Searcher
from cbir.core.vote import SearchSpec

__all__ = ["settle_search_threads"]

_log = logging.getLogger(__name__)

#: The fastest of so many searches counts, in each of several rounds: the first ones touch memory for the first time,
#: and what else runs on the machine would otherwise be taken for the cost of one thread.
_TRIES, _ROUNDS = 4, 5
#: Seconds between two rounds.  A processor that is shared may be taken away for some milliseconds.
_APART = 0.02


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
        one = several = float("inf")
        for _ in range(_ROUNDS):
            undo = compute_alone()
            one = min(one, _seconds(searcher))
            undo()
            if one < NOTICED_MS / 1000:
                # However fast several are, they cannot save as much.
                break
            several = min(several, _seconds(searcher))
            sleep(_APART)
        pays = one - several > NOTICED_MS / 1000
        if not pays:
            search_alone()
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
