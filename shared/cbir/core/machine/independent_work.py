"""Several independent computations at the same time, one on each core."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from cbir.core.machine.hardware import cores

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

__all__ = ["side_by_side"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What ``work`` gives for each item, in their order; for work that leaves the interpreter, as NumPy's does.

    Linear algebra gets one thread in each computation.  A decomposition of a few hundred columns gains little by
    several: most of it is bound to memory, and its threads wait for each other by spinning, which on a busy machine
    makes it a hundred times slower.

    Raises:
        Exception: What ``work`` raised for the first item for which it did.
    """
    todo = list(items)
    threads = min(cores(), len(todo))
    if threads <= 1:
        return [work(item) for item in todo]
    with (
        _controller(len(sys.modules)).limit(limits=1, user_api="blas"),
        ThreadPoolExecutor(threads, thread_name_prefix="side") as pool,
    ):
        return list(pool.map(work, todo))


@lru_cache(maxsize=1)
def _controller(modules: int) -> ThreadpoolController:
    """Of the libraries that are loaded now; looked for again (milliseconds) when more modules have been imported."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
