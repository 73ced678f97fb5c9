"""Unit vectors: scaling to length 1, so that inner products are cosines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import jit

__all__ = ["make_unit", "normalise"]

Floats = NDArray[np.float32]


def normalise(x: Floats) -> Floats:
    """Scale the rows of (N, D) to unit length; zero rows stay zero."""
    result = np.array(x, np.float32, order="C")
    make_unit(result)
    return result


@jit
def make_unit(x: Floats) -> bool:
    """Scale the rows of (N, D) to unit length, in place; return whether every row had a finite length above 0."""
    usable = True
    for row in x:
        total = 0.0
        for d in range(len(row)):
            total += np.float64(row[d]) * row[d]
        norm = np.sqrt(total)
        usable = usable and 0 < norm < np.inf
        row /= max(norm, 1e-12)
    return usable
