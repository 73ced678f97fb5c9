"""Faults of a measurement: figures of it that cannot be believed, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["faults"]

#: A generator that is late by more than this part of what it measures measures itself.
_LATE = 0.1
#: A limit may be lower than what was served by so much, for the pace of the machine changes.
_NOISE = 0.05
#: Load of other programs, a core, from which on figures are shared ones.
_BUSY = 0.25


def faults(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with a measurement, a sentence each; none where it can be believed.

    Args:
        document: The result of :func:`cbir.server.bench.measurement.measure`, without faults and ratios.
    """
    return [*_busy(document), *_limits(document), *_late(document)]


def _busy(document: Mapping[str, Any]) -> Iterator[str]:
    machine = document["machine"]
    if machine["load_before"] > _BUSY * machine["cores"]:
        yield (
            f"other programs were running: the load was {machine['load_before']:g} on {machine['cores']} cores before "
            "the first measurement; measure again when the machine is idle"
        )


def _limits(document: Mapping[str, Any]) -> Iterator[str]:
    bare = (document.get("limits") or {}).get("bare")
    if not bare:
        return
    # The engine alone works on queries of the first kind.
    kind = document["closed"][0]["kind"]
    served = max(one["per_second"] for one in document["closed"] if one["kind"] == kind)
    parts = ("decode_workers", "forward_batch", "search_batch") if kind == "image" else ("search_batch",)
    for part in parts:
        limit = (bare.get(part) or {}).get("per_second")
        if limit is not None and served > limit * (1 + _NOISE):
            yield (
                f"the limit {part.replace('_', ' ')} was measured wrongly: {limit:,.0f} a second alone, and "
                f"{served:,.0f} queries by {kind} were served"
            )


def _late(document: Mapping[str, Any]) -> Iterator[str]:
    for one in document.get("open", []):
        late, measured = one["generator_late_p99_ms"], one["p50_ms"]
        if late is not None and measured is not None and late > _LATE * measured:
            yield (
                f"the open loop at {one['fraction']:g} of capacity measured the generator too: it was late by "
                f"{late:.1f} ms (p99), beside {measured:.1f} ms for an answer (p50); use more --generators, or fewer "
                "cores for the server"
            )
