"""What the parts of a server, measured alone in the same run, allow at most: models that a ratio is read beside.

Each is the best that a server could do that lost nothing between its parts.  Source of the simulated queue: Kleinrock,
"Queueing Systems", volume 1, 1975 (bulk service).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["cores_left", "in_turn", "queue_ratio", "with_an_empty_call"]

#: Queries of the simulated queue, and of the first of them those that fill it.
_SIMULATED, _FILLING = 40_000, 2_000


def in_turn(rates: Iterable[float]) -> float:
    """Queries per second of stages that each use all cores, one after the other."""
    return 1 / sum(1 / rate for rate in rates)


def with_an_empty_call(stages: float, echo: Mapping[str, Any], cores: int) -> float:
    """Queries per second where each takes what its stages take on all cores and what an empty call takes of them.

    Args:
        stages: Queries per second of the stages alone.
        echo: A closed loop of the echo server, with the CPU time of server and generator in milliseconds each.
        cores: That server and generator share.
    """
    call = float(echo["server_cpu_ms_each"] + echo["generator_cpu_ms_each"]) / 1000
    return 1 / (1 / stages + call / cores)


def queue_ratio(one: float, batch: float, most: int, load: float, random: np.random.Generator) -> float:
    """The p99 of waiting and service over the service of a query alone, of a server that takes all that waits.

    Args:
        one: Seconds that a query alone takes.
        batch: Seconds a query in a batch of ``most``; what is between follows a line.
        load: Random arrivals, as a fraction of what full batches do.
    """
    each = max(0.0, (batch * most - one) / (most - 1)) if most > 1 else 0.0
    arrivals: NDArray[np.float64] = random.exponential(batch / load, _SIMULATED).cumsum()
    took = np.empty(_SIMULATED)
    now, done = 0.0, 0
    while done < _SIMULATED:
        now = max(now, arrivals[done])
        count = min(most, int(np.searchsorted(arrivals, now, side="right")) - done)
        now += one + each * (count - 1)
        took[done : done + count] = now - arrivals[done : done + count]
        done += count
    return float(np.quantile(took[_FILLING:], 0.99) / one)


def cores_left(flood: Mapping[str, Any]) -> float | None:
    """What a flood leaves the engine of the cores that it has at capacity: the rest is taken by those who ask.

    Args:
        flood: An open loop; None is returned where the server is elsewhere and does not tell.
    """
    calm, flooded = (flood["cores"].get(when) or {} for when in ("at capacity", "flooded"))
    part = "engine and models"
    return flooded[part] / calm[part] if calm.get(part) and part in flooded else None
