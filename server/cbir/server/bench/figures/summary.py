"""Figures of a load: percentiles, rates, goodput, refusals.

Pure functions of arrays of times in seconds; the figures are in milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.server.bench.load.outcomes import Outcomes

__all__ = ["closed_rate", "latency_figures", "open_figures", "percentile", "refusal_figures"]

Seconds = NDArray[np.float64]


def percentile(values: Seconds | Sequence[float], share: float) -> float:
    """The nearest-rank percentile: the smallest value that at least ``share`` per cent of the values do not exceed.

    It is always one of the values; nan if there are none.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    if not len(ordered):
        return float("nan")
    return float(ordered[max(0, int(np.ceil(share / 100 * len(ordered) - 1e-9)) - 1)])


def latency_figures(seconds: Seconds) -> dict[str, Any]:
    """Number, mean and percentiles of latencies, in milliseconds; a figure is None where there are no values."""
    figures: dict[str, Any] = {"count": len(seconds)}
    figures["mean_ms"] = _ms(float(np.mean(seconds))) if len(seconds) else None
    for share in (50, 95, 99):
        figures[f"p{share}_ms"] = _ms(percentile(seconds, share)) if len(seconds) else None
    return figures


def closed_rate(outcomes: Outcomes, concurrency: int) -> float:
    """Answers per second of a closed loop, by Little's law: requests in flight divided by the mean time of a cycle.

    A cycle of one of the ``concurrency`` senders lasts from the end of one of its requests to the end of the next.
    Counting the answers within a window would be wrong by up to a batch, and a window holds only a few batches.

    Returns:
        nan if no sender has ended two requests.
    """
    total, cycles = 0.0, 0
    answered = outcomes.answered
    for place in np.unique(outcomes.place):
        mine = outcomes.place == place
        done = np.sort(outcomes.done[mine])
        if len(done) > 1:
            total += done[-1] - done[0]
            cycles += len(done) - 1
    if not cycles:
        return float("nan")
    # Failed requests take up cycles too, but are not answers.
    return concurrency * cycles / total * float(np.mean(answered))


def open_figures(outcomes: Outcomes, begin: float, end: float, deadline: float) -> dict[str, Any]:
    """Figures of an open loop from ``begin`` to ``end``.

    Latencies and refusals are those of the requests that were due in that time; throughput and goodput count the
    answers that arrived in that time, so that neither a filling nor a draining queue improves the figures.

    Args:
        deadline: An answer counts as goodput if it came within so many seconds after its request was due.
    """
    due = outcomes.picked((outcomes.due >= begin) & (outcomes.due < end))
    ended = outcomes.picked((outcomes.done >= begin) & (outcomes.done < end))
    good = ended.answered & (ended.latencies <= deadline)
    late = due.sent - due.due
    span = end - begin
    return {
        "seconds": span,
        "offered_per_second": len(due) / span,
        "answered_per_second": float(ended.answered.sum()) / span,
        "goodput_per_second": float(good.sum()) / span,
        "deadline_ms": _ms(deadline),
        **latency_figures(due.latencies[due.answered]),
        "refused": refusal_figures(due),
        "errors": due.errors(),
        "generator_late_p99_ms": _ms(percentile(late, 99)) if len(late) else None,
    }


def refusal_figures(outcomes: Outcomes) -> dict[str, Any]:
    """How many requests were refused for overload, how quickly, and what share of those by the server in words was told
    when to try again; the others were turned away by its transport.
    """
    refused, turned_away = outcomes.refused, outcomes.turned_away
    told = [outcomes.failures[row].retry_info for row in np.flatnonzero(refused).tolist()]
    return {
        **latency_figures(outcomes.latencies[refused | turned_away]),
        "turned_away": int(turned_away.sum()),
        "with_retry_info": float(np.mean(told)) if told else None,
    }


def _ms(seconds: float) -> float:
    return 1000 * seconds
