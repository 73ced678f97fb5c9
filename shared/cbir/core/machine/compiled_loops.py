"""Compiled loops, for the many small steps of a query between the large matrix products.

As NumPy calls, these steps take microseconds each and half a millisecond together.  Compiled by Numba, a whole batch
takes less; of the longer ones other threads can run meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar, cast

import numba

__all__ = ["brief", "brief_or_long", "jit", "keep_compiled"]

F = TypeVar("F", bound=Callable[..., object])

_uncached: list[Any] = []
#: Whether this program keeps what is compiled.
_keeps = False
#: Numbers of an array over which a loop takes microseconds: the vectors of a batch of queries.
_FEW = 2**16


def jit(function: F) -> F:
    """Compile a function of arrays and numbers on its first call.

    The compiled function releases the interpreter's lock, may add floats in any order, and raises nothing on division
    by zero.  Pass C-contiguous arrays: Numba compiles anew for every other memory layout.
    """
    return _compile(function, nogil=True)


def brief(function: F) -> F:
    """Compile a function as :func:`jit` does, but keep the interpreter's lock while it runs.

    For steps of microseconds in which a server answers a batch: its event loop takes a lock that is released, and
    whoever released it waits up to a whole turn to have it back (:func:`cbir.core.machine.take_turns`).
    """
    return _compile(function, nogil=False)


def brief_or_long(function: F) -> F:
    """Compile a function as :func:`brief` does for first arguments of few numbers, and as :func:`jit` does for others.

    For steps that both a query takes and a whole gallery.  Not to be called from compiled functions.
    """
    short, long = brief(function), jit(function)

    @wraps(function)
    def call(array: Any, *arguments: Any) -> object:
        return (short if array.size <= _FEW else long)(array, *arguments)

    return cast(F, call)


def _compile(function: F, *, nogil: bool) -> F:
    # Not all of fastmath: it assumes that there are no infinities, which here stand for missing values.
    fastmath = {"reassoc", "contract", "nsz", "arcp"}
    compiled = numba.njit(function, nogil=nogil, error_model="numpy", fastmath=fastmath)
    _uncached.append(compiled)
    if _keeps:
        keep_compiled()
    return cast(F, compiled)


def keep_compiled() -> None:
    """Cache the machine code of what is compiled here, so far and from now on, on disk: later starts save seconds.

    For programs to call when they start; importing a module must not touch the disk.
    """
    global _keeps
    _keeps = True
    while _uncached:
        # Numba raises where neither the package's folder nor the user's cache folder is writable.
        with suppress(RuntimeError):
            _uncached.pop().enable_caching()
