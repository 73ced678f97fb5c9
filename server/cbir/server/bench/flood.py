"""Open loops: requests arrive at a given rate, whether or not the server keeps up."""

from __future__ import annotations

from typing import Any

import numpy as np

from cbir.server.bench.figures.summary import open_figures
from cbir.server.bench.load.arrivals import constant, poisson
from cbir.server.bench.load.crowd import Crowd
from cbir.server.bench.load.payloads import Payloads

__all__ = ["flood"]

#: Number of points of the latency distribution that are kept for the chart.
_POINTS = 200


async def flood(
    crowd: Crowd,
    payloads: Payloads,
    *,
    rate: float,
    fraction: float,
    seconds: float,
    deadline: float,
    arrivals: str,
    seed: int,
) -> dict[str, Any]:
    """Send requests at a fixed rate, and compute the figures of what came of them.

    Args:
        rate: Requests per second.
        fraction: The rate as a fraction of the capacity; only reported.
        seconds: How long the loop is measured, after a quarter of that time in which queues fill.
        deadline: An answer counts as goodput if it came within so many seconds after its request was due.
        arrivals: ``poisson`` or ``constant``.
    """
    warm = seconds / 4
    times = constant(rate, warm + seconds) if arrivals == "constant" else poisson(rate, warm + seconds, seed)
    load = await crowd.scheduled(payloads, times)
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
