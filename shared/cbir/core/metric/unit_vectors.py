"""Unit vectors: scaling to length 1, so that inner products are cosines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import brief_or_long

__all__ = ["make_unit", "normalise", "unit_rows"]

Floats = NDArray[np.float32]


def normalise(x: Floats) -> Floats:
    """Scale the rows of (N, D) to unit length; zero rows stay zero."""
    return unit_rows(x)[0]


def unit_rows(x: Floats) -> tuple[Floats, bool]:
    """(N, D) the rows scaled to unit length, and whether every row had a finite length above 0; zero rows stay zero."""
    given = np.ascontiguousarray(x, np.float32)
    result = np.empty_like(given)
    return result, bool(_unit_rows(given, result))


def make_unit(x: Floats) -> bool:
    """As :func:`unit_rows`, in place; for a C-contiguous array."""
    return bool(_unit_rows(x, x))


@brief_or_long
def _unit_rows(x: Floats, result: Floats) -> bool:
    usable = True
    for row in range(x.shape[0]):
        total = 0.0
        for d in range(x.shape[1]):
            total += np.float64(x[row, d]) * x[row, d]
        norm = np.sqrt(total)
        usable = usable and 0 < norm < np.inf
        for d in range(x.shape[1]):
            result[row, d] = x[row, d] / max(norm, 1e-12)
    return usable
