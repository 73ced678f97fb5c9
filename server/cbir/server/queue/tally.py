"""What the server counts: plain numbers, cheap to add to and read by whoever exports them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from cbir.core.errors import CbirError
from cbir.server.queue.admission import OverloadedError
from cbir.server.queue.batching import DeadlineError

__all__ = ["STAGES", "Histogram", "Tally"]

#: Upper bounds in seconds, from an idle GPU's half a millisecond to what only a flooded server takes.
_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip

_SCORES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

#: The stages of a query, as in its timings, and all of it.
STAGES = ("decode", "queue", "embed", "search", "fuse", "total")


class Histogram:
    """Counts by upper bound.  One thread adds, any may read.

    Args:
        bounds: Upper bounds, each counted with what is below it, ascending.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = _SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Tally:
    """What became of the queries.  Its owner is one event loop.

    Attributes:
        admitted: Queries that were let in.
        processed: Queries that were in batches.
        cancelled: Queries whose callers all left before their batch began; they cost no forward pass.
        cancelled_late: Queries whose callers all left afterwards.
        expired: Queries whose deadline passed before their batch began; they cost no forward pass.
        joined: Queries that waited for the answer to the same query of another caller.
        outcomes: What callers were told: ``answered``, ``refused`` (no room or no time), ``expired``, ``rejected`` (the
            query was to blame) or ``failed`` (the server was), each with the reason.
        stages: Seconds by stage.
        batches: Sizes of the batches.
        first_scores: Score of the first hit of each answer that has hits.  After tuning that is a probability of
            relevance: where it falls, queries have become unlike the gallery.
    """

    def __init__(self, buckets: Sequence[int]) -> None:
        self.admitted = 0
        self.processed = 0
        self.cancelled = 0
        self.cancelled_late = 0
        self.expired = 0
        self.joined = 0
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.stages = {stage: Histogram() for stage in STAGES}
        self.batches = Histogram(buckets)
        self.first_scores = Histogram(_SCORES)

    def outcome(self, outcome: bytes | Exception) -> None:
        """Count what one caller is told."""
        if isinstance(outcome, bytes):
            self.outcomes["answered", ""] += 1
        elif not isinstance(outcome, CbirError):
            self.outcomes["failed", "INTERNAL"] += 1
        elif isinstance(outcome, OverloadedError):
            self.outcomes["refused", outcome.reason] += 1
        else:
            self.outcomes["expired" if isinstance(outcome, DeadlineError) else "rejected", outcome.reason] += 1
