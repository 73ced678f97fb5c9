"""Loops that are compiled: what a query needs between the large products is many small steps.

Each of them costs microseconds as a call of NumPy, and half a millisecond together; compiled, a whole batch takes less,
and other threads run meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

import numba

__all__ = ["jit", "keep_compiled"]

F = TypeVar("F", bound=Callable[..., object])

_not_kept: list[Any] = []


def jit(function: F) -> F:
    """Compile a function of arrays and numbers on its first call.

    It holds no lock of the interpreter, sums of floats may be taken in any order, and dividing by zero raises nothing.
    Arrays must lie in memory as the loop expects, row by row: another layout is another type, compiled anew.
    """
    # Not "fast" altogether: infinities stand for what is absent.
    fastmath = {"reassoc", "contract", "nsz", "arcp"}
    compiled = numba.njit(function, nogil=True, error_model="numpy", fastmath=fastmath)
    _not_kept.append(compiled)
    return cast(F, compiled)


def keep_compiled() -> None:
    """Keep the machine code of what is imported so far on disk: the next start then takes seconds less.

    It is for programs to call before they begin, as importing alone must not touch the disk.
    """
    while _not_kept:
        # Neither the package's folder nor the user's cache may be there to write to.
        with suppress(RuntimeError):
            _not_kept.pop().enable_caching()
