"""How much time each stage of a query took, from the timings in the answers."""

from __future__ import annotations

from collections.abc import Sequence

from cbir.v1 import search_pb2

__all__ = ["STAGES", "mean_stages"]

#: The stages in an answer's ``Timings``, in the order a query passes them.
STAGES = tuple(field.name for field in search_pb2.Timings.DESCRIPTOR.fields)


def mean_stages(replies: Sequence[bytes]) -> dict[str, float]:
    """Mean milliseconds of each stage over serialised ``SearchResponse`` messages; empty without messages.

    ``embed`` and ``search`` are the times of the whole batch that a query was in, because it waits for all of it.
    """
    timings = [search_pb2.SearchResponse.FromString(reply).timings for reply in replies]
    if not timings:
        return {}
    return {
        name: 1000 * sum(getattr(one, name).seconds + getattr(one, name).nanos / 1e9 for one in timings) / len(timings)
        for name in STAGES
    }
