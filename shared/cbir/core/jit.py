"""Loops that are compiled: what a query needs between the large products is many small steps.

Each of them costs microseconds as a call of NumPy, and milliseconds together; compiled, a whole batch takes less, and
other threads run meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

__all__ = ["jit"]

F = TypeVar("F", bound=Callable[..., object])


def jit(function: F) -> F:
    """Compile a function of arrays and numbers on its first call; the machine code is kept for the next start.

    It holds no lock of the interpreter, sums of floats may be taken in any order, and dividing by zero raises nothing.
    """
    try:
        return _compiled(function, cache=True)
    except RuntimeError:
        # Neither the package's folder nor the user's cache can be written to.
        return _compiled(function, cache=False)


def _compiled(function: F, *, cache: bool) -> F:
    # Not "fast" altogether: infinities stand for what is absent.
    fastmath = {"reassoc", "contract", "nsz", "arcp"}
    return cast(F, numba.njit(function, cache=cache, nogil=True, error_model="numpy", fastmath=fastmath))
