"""One computation over many rows, shared out among the cores: each computes a range of the rows on one thread.

Libraries share out what they compute themselves, but not always well: FAISS searches for one query on one thread,
whatever the number of rows, and torch's threads wait for each other at every small product.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import TypeVar

from cbir.core.machine.hardware import cores
from cbir.core.machine.thread_shares import compute_alone, step_back

__all__ = ["row_ranges", "shared_out"]

Result = TypeVar("Result")


def row_ranges(count: int, least: int) -> list[tuple[int, int]]:
    """As many ranges of ``count`` rows as this thread may use threads, but each of at least ``least`` rows."""
    import torch

    parts = max(1, min(torch.get_num_threads(), count // max(1, least)))
    stops = [count * part // parts for part in range(parts + 1)]
    return list(pairwise(stops))


def shared_out(work: Callable[[int, int], Result], ranges: list[tuple[int, int]]) -> list[Result]:
    """What ``work`` gives for each range of rows, in their order; for work that leaves the interpreter.

    A single range is computed as it would be without this, several with one thread each: FAISS's and torch's loops
    have no further threads there.  Where this thread may use one only, all are computed on it in turn.

    Raises:
        Exception: What ``work`` raised for the first range for which it did.
    """
    import torch

    if len(ranges) == 1 or torch.get_num_threads() == 1:
        return [work(*part) for part in ranges]
    others = [_workers().submit(work, *part) for part in ranges[1:]]
    undo = compute_alone()
    try:
        first = work(*ranges[0])
    finally:
        undo()
    return [first, *(other.result() for other in others)]


@cache
def _workers() -> ThreadPoolExecutor:
    """A thread for each core but one, as the caller computes too; each computes alone, for good."""
    import torch

    wanted = max(1, cores() - 1)
    started = threading.Barrier(wanted + 1)

    def begin() -> None:
        compute_alone()
        # As the thread that waits for them does, if it was not stepped back itself, which they inherit.
        if sys.platform == "linux" and _priority(threading.get_native_id()) == _priority(os.getpid()):
            step_back()
        started.wait()

    workers = ThreadPoolExecutor(wanted, thread_name_prefix="rows", initializer=begin)
    for _ in range(wanted):
        workers.submit(int)
    started.wait()
    # Torch gives the number that was set last, by any thread, to all that start later.
    torch.set_num_threads(torch.get_num_threads())
    return workers


def _priority(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)
