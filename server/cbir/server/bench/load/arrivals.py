"""When the requests of an open loop are due: fixed before the first is sent, whatever the server does then."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["constant", "poisson"]


def constant(rate: float, seconds: float) -> NDArray[np.float64]:
    """Equal gaps of ``1 / rate``: the times, in seconds from the start, of all arrivals before ``seconds``."""
    return np.arange(0, seconds * rate - 1e-9) / rate


def poisson(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Independent callers: gaps are exponential with mean ``1 / rate``.

    Returns:
        Rising times in seconds from the start, all before ``seconds``; the same for the same arguments.
    """
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, max(16, int(1.2 * rate * seconds))))
    while times[-1] < seconds:
        times = np.append(times, times[-1] + np.cumsum(rng.exponential(1 / rate, 64)))
    return times[times < seconds]
