"""Cancelled requests: whether the server spends forward passes on queries whose callers have left."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

from cbir.server.bench.load.generator import Generator, Window
from cbir.server.bench.load.payloads import Payloads
from cbir.server.bench.server_process import ServerProcess

__all__ = ["account", "cancel_half"]

#: Names of the server's counters; the last is the beginning of one with more labels.
_ADMITTED, _PROCESSED, _EXPIRED = "cbir_admitted_total", "cbir_batch_size_sum", "cbir_expired_total"
_BEFORE_BATCH = 'cbir_cancelled_total{when="before_batch"'


async def cancel_half(
    generator: Generator, payloads: Payloads, server: ServerProcess, *, concurrency: int, usual: float, seconds: float
) -> dict[str, Any]:
    """Run a closed loop of which half of the requests are cancelled, and read how the server's counters change.

    Every admitted query ends up in a batch, or its caller leaves before its batch begins, or its deadline passes before
    that.  If these counts add up to the number admitted, no forward pass was spent on a query counted as cancelled.

    Args:
        usual: Seconds that a request usually takes at this concurrency; a caller that leaves does so after a random
            part of half of this time.
        seconds: How long the loop is measured.
    """
    dice = random.Random(0)  # noqa: S311 - no secret
    before = server.counters()
    load = await generator.closed(
        payloads, concurrency, Window(seconds, warm=0.0),
        lambda: dice.uniform(0, usual / 2) if dice.random() < 0.5 else None,
    )  # fmt: skip
    # The last cancellations still have to reach the server.
    await asyncio.sleep(max(0.2, 2 * usual))
    changes = {name: value - before.get(name, 0.0) for name, value in server.counters().items()}
    return {
        "concurrency": concurrency,
        "sent": load.requests,
        "answered": load.answered,
        "left_early": load.cancelled,
        **account(changes),
    }


def account(changes: Mapping[str, float]) -> dict[str, Any]:
    """What became of the admitted queries, by the server's counters.

    Args:
        changes: By how much each counter has grown, by its name and labels.

    Returns:
        ``unaccounted`` is the number of admitted queries that no other counter covers (negative if some are counted
        twice).  Every value is None where the server has no such counters.
    """
    parts = {"admitted": _ADMITTED, "processed": _PROCESSED, "cancelled_before": _BEFORE_BATCH, "expired": _EXPIRED}
    found = {
        part: [value for name, value in changes.items() if name.startswith(start)] for part, start in parts.items()
    }
    counts: dict[str, Any] = {part: sum(values) if values else None for part, values in found.items()}
    if None in counts.values():
        return counts | {"unaccounted": None}
    missing = counts["admitted"] - counts["processed"] - counts["cancelled_before"] - counts["expired"]
    return counts | {"unaccounted": missing}
