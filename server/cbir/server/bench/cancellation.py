"""Callers that leave early: whether a forward pass is spent on what nobody waits for."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from cbir.server.bench.generator import Generator, Window
from cbir.server.bench.payloads import Payloads
from cbir.server.bench.server_process import ServerProcess

__all__ = ["cancel_half"]

#: Parts of the names of the counters that are told.
_TELLING = ("cancel", "expire", "refuse", "process", "forward", "embed", "batch", "answer", "quer")


async def cancel_half(
    generator: Generator, payloads: Payloads, server: ServerProcess, *, concurrency: int, usual: float, seconds: float
) -> dict[str, Any]:
    """Keep requests in flight of which half are cancelled, and read the server's counters.

    Every request that was cancelled before its batch began must be counted as cancelled and never be processed; those
    whose caller left later were processed in vain.  So ``sent = answered + counted as cancelled + too late``.

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
    after = server.counters()
    changes = {
        name: value - before.get(name, 0.0)
        for name, value in after.items()
        if name.endswith("_total") and any(part in name for part in _TELLING)
    }
    cancelled = sum(value for name, value in changes.items() if "cancelled" in name)
    return {
        "concurrency": concurrency,
        "sent": load.requests,
        "answered": load.answered,
        "left_early": load.cancelled,
        "counted_as_cancelled": cancelled if after else None,
        "counters": changes,
    }
