"""Open loops: requests arrive at a given rate, whether or not the server keeps up."""

from __future__ import annotations

from typing import Any

import numpy as np

from cbir.server.bench.core_shares import CoreShares
from cbir.server.bench.figures.summary import closed_rate, open_figures
from cbir.server.bench.load.arrivals import constant, poisson
from cbir.server.bench.load.crowd import Crowd
from cbir.server.bench.load.frame_generator import FrameGenerator
from cbir.server.bench.load.generator import Window
from cbir.server.bench.load.payloads import Payloads
from cbir.server.bench.server_process import ServerProcess

__all__ = ["flood"]

#: Number of points of the latency distribution that are kept for the chart.
_POINTS = 200
#: Seconds in which a server has to be what it was before.
_RECOVERY = 2.0


async def flood(
    crowd: Crowd,
    payloads: Payloads,
    *,
    calm: FrameGenerator,
    concurrency: int,
    fraction: float,
    seconds: float,
    capacity_seconds: float,
    deadline: float,
    arrivals: str,
    seed: int,
    server: ServerProcess | None = None,
) -> dict[str, Any]:
    """Send requests at a fixed rate, and compute the figures of what came of them.

    The capacity is measured right before, by a generator of the same kind, because a host's pace changes; and again two
    seconds after, which shows whether the server is what it was.

    Args:
        calm: Measures the capacity, with ``concurrency`` requests in flight.
        fraction: The rate as a fraction of the capacity.
        seconds: How long the loop is measured, after a quarter of that time in which queues fill.
        capacity_seconds: How long the capacity is measured.
        deadline: An answer counts as goodput if it came within so many seconds after its request was due.
        arrivals: ``poisson`` or ``constant``.
        server: The server, where it is on this machine: its memory and its shares of the cores are measured.
    """
    cores: dict[str, dict[str, float]] = {}
    waited: dict[str, dict[str, float]] = {}

    async def capacity(warm: float) -> float:
        taken = CoreShares(server.pid if server else None)
        load = await calm.closed(payloads, concurrency, Window(capacity_seconds, warm))
        cores.setdefault("at capacity", taken.read(load.generator_seconds))
        waited.setdefault("at capacity", taken.waited())
        return closed_rate(load.outcomes, concurrency)

    before = await capacity(min(0.5, capacity_seconds / 4))
    rate, warm = fraction * before, seconds / 4
    times = constant(rate, warm + seconds) if arrivals == "constant" else poisson(rate, warm + seconds, seed)
    memory = [server.resident_mib] if server else []
    taken = CoreShares(server.pid if server else None)
    load = await crowd.scheduled(payloads, times)
    cores["flooded"], waited["flooded"] = taken.read(load.generator_seconds), taken.waited()
    memory += [server.resident_mib] if server else []
    after = await capacity(_RECOVERY) if fraction > 1 else None
    begin, end = load.begin + warm, load.begin + warm + seconds
    figures = open_figures(load.outcomes, begin, end, deadline)
    due = load.outcomes.picked((load.outcomes.due >= begin) & (load.outcomes.due < end))
    latencies = np.sort(due.latencies[due.answered])
    shares = np.linspace(0, 1, min(_POINTS, len(latencies)))
    return {
        "kind": payloads.kind,
        "fraction": fraction,
        "arrivals": arrivals,
        "concurrency": concurrency,
        "capacity_per_second": before,
        "after_per_second": after,
        "resident_mib": memory,
        "cores": cores,
        "waited_for_a_core": waited,
        **figures,
        "generator_cpu_ms_each": 1000 * load.generator_seconds / max(1, load.requests),
        "distribution_ms": (1000 * np.quantile(latencies, shares)).round(3).tolist() if len(latencies) else [],
    }
