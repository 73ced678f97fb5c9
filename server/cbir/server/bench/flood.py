"""Open loops: callers that come whether or not the server keeps up."""

from __future__ import annotations

from typing import Any

import numpy as np

from cbir.server.bench.figures.summary import open_figures
from cbir.server.bench.load.arrivals import constant, poisson
from cbir.server.bench.load.generator import Generator
from cbir.server.bench.load.payloads import Payloads

__all__ = ["flood"]

#: Points of the distribution that are kept for the picture.
_POINTS = 200


async def flood(
    generator: Generator,
    payloads: Payloads,
    *,
    rate: float,
    fraction: float,
    seconds: float,
    deadline: float,
    arrivals: str,
    seed: int,
) -> dict[str, Any]:
    """Send at a fixed rate and tell what came of it.

    Args:
        fraction: Of the capacity; it is only told.
        seconds: That are watched; a quarter more goes before, in which queues fill.
        deadline: Seconds within which an answer is good.
        arrivals: ``poisson`` or ``constant``.
    """
    warm = seconds / 4
    times = constant(rate, warm + seconds) if arrivals == "constant" else poisson(rate, warm + seconds, seed)
    load = await generator.scheduled(payloads, times)
    begin, end = load.begin + warm, load.begin + warm + seconds
    figures = open_figures(load.outcomes, begin, end, deadline)
    due = load.outcomes.picked((load.outcomes.due >= begin) & (load.outcomes.due < end))
    latencies = np.sort(due.latencies[due.answered])
    shares = np.linspace(0, 1, min(_POINTS, len(latencies)))
    return {
        "kind": payloads.kind,
        "fraction": fraction,
        "arrivals": arrivals,
        **figures,
        "generator_cpu_ms_each": 1000 * load.generator_seconds / max(1, load.requests),
        "distribution_ms": (1000 * np.quantile(latencies, shares)).round(3).tolist() if len(latencies) else [],
    }
