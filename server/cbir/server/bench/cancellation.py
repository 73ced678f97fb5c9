"""Callers that leave early: whether a forward pass is spent on what nobody waits for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

from cbir.server.bench.load.generator import Generator, Window
from cbir.server.bench.load.payloads import Payloads
from cbir.server.bench.server_process import ServerProcess

__all__ = ["account", "cancel_half"]

#: What the server counts of queries, by the beginnings of names; labels follow.
_ADMITTED, _PROCESSED, _EXPIRED = "cbir_admitted_total", "cbir_batch_size_sum", "cbir_expired_total"
_BEFORE_BATCH = 'cbir_cancelled_total{when="before_batch"'


async def cancel_half(
    generator: Generator, payloads: Payloads, server: ServerProcess, *, concurrency: int, usual: float, seconds: float
) -> dict[str, Any]:
    """Keep requests in flight of which half are cancelled, and read the server's counters.

    A query that was admitted is in a batch, or its caller left, or its deadline passed, before its batch began.  If the
    counts of these add up to those admitted, then no forward pass was spent on a query that is counted as cancelled.

    Args:
        usual: Seconds that a request takes at this concurrency; callers leave after a random part of half of it.
    """
    dice = random.Random(0)  # noqa: S311 - no secret
    before = server.counters()
    load = await generator.closed(
        payloads, concurrency, Window(seconds, warm=0.0),
        lambda: dice.uniform(0, usual / 2) if dice.random() < 0.5 else None,
    )  # fmt: skip
    # What was cancelled last is still on its way to the server.
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
    """What became of the queries that were admitted, by the server's counters.

    Args:
        changes: By how much each sample of its metrics page has grown.

    Returns:
        ``unaccounted`` are those that are counted as nothing, or as two things where it is negative; every value is
        None where the server has no such counters.
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
