"""When the requests of an open loop are due: fixed beforehand, so that a slow server does not slow them down."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["constant", "poisson"]


def constant(rate: float, seconds: float) -> NDArray[np.float64]:
    """Equal gaps of ``1 / rate`` seconds.

    Returns:
        All times before ``seconds``, in seconds from the start.
    """
    return np.arange(0, seconds * rate - 1e-9) / rate


def poisson(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """A Poisson process, as of independent callers: gaps are exponential with mean ``1 / rate`` seconds.

    Returns:
        Ascending times before ``seconds``, in seconds from the start; always the same for the same arguments.
    """
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, max(16, int(1.2 * rate * seconds))))
    while times[-1] < seconds:
        times = np.append(times, times[-1] + np.cumsum(rng.exponential(1 / rate, 64)))
    return times[times < seconds]
