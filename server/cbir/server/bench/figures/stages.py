"""Where the time of answers went, by their own account."""

from __future__ import annotations

from collections.abc import Sequence

from cbir.v1 import search_pb2

__all__ = ["STAGES", "mean_stages"]

#: The stages that an answer tells of, in the order they are passed.
STAGES = tuple(field.name for field in search_pb2.Timings.DESCRIPTOR.fields)


def mean_stages(replies: Sequence[bytes]) -> dict[str, float]:
    """Mean milliseconds by stage of serialised ``SearchResponse`` messages; empty without any.

    ``embed`` and ``search`` are those of the whole batch that a query was in, which is what it waited for.
    """
    timings = [search_pb2.SearchResponse.FromString(reply).timings for reply in replies]
    if not timings:
        return {}
    return {
        name: 1000 * sum(getattr(one, name).seconds + getattr(one, name).nanos / 1e9 for one in timings) / len(timings)
        for name in STAGES
    }
