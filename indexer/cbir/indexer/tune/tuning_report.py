"""The result of a tuning run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cbir.core.vote import VoteSettings

__all__ = ["Gain", "Step", "TuningReport"]

#: A mean gain, and the two ends of its 95 % bootstrap interval.
Gain = tuple[float, float, float]


@dataclass(frozen=True)
class Step:
    """The gain of one part of the new vote alone over the live vote."""

    name: str
    gain: Gain


@dataclass(frozen=True)
class TuningReport:
    """MAP@10 of queries to whose labels neither metric nor heads were fitted.

    Attributes:
        queries: Number of queries; 0 if there were too few labels, so that tuning did without them.
        before: MAP@10 of the live vote.
        after: MAP@10 of the new vote, on the queries it was chosen on.
        held_out: MAP@10 of each half of the queries under a vote chosen on the other half.
        gain: Mean of ``held_out`` minus ``before`` and its 95 % bootstrap interval, paired by query; zeros if the live
            vote is the best one and stays.
        equal: MAP@10 of the new vote with equal weights.
        members: MAP@10 of the new vote with each member alone.
        ece: Expected calibration error over the first ten hits, by cross-validation over the queries.
        version: The published version; None if there was no gain.
        rejected: Whether these are the figures of a vote that was not published, because it is not a gain.
        steps: The gains of the vote's parts; measured if the whole is not a gain.
        whole_gain: The gain of the whole vote, if it was not published.
        taken: The part that was published instead of the whole; the figures are then those of this part.
    """

    index: str
    queries: int
    query_source: str
    before: float | None
    after: float | None
    held_out: float | None
    gain: Gain | None
    equal: float | None
    members: Mapping[str, float]
    vote: VoteSettings
    ece: float | None
    version: str | None
    rejected: bool = False
    steps: tuple[Step, ...] = ()
    whole_gain: Gain | None = None
    taken: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The document that ``cbir tune --json`` prints."""
        return {
            "index": self.index,
            "version": self.version,
            "published": self.version is not None,
            "rejected": self.rejected,
            "queries": self.queries,
            "query_source": self.query_source,
            "map@10": {"before": self.before, "after": self.after, "held_out": self.held_out, "equal": self.equal},
            "gain": _interval(self.gain),
            "whole": {"gain": _interval(self.whole_gain)} if self.whole_gain else None,
            "steps": {step.name: _interval(step.gain) for step in self.steps},
            "taken": self.taken,
            "members": {name: {"map@10": value} for name, value in self.members.items()},
            "vote": self.vote.to_json(),
            "ece": self.ece,
        }


def _interval(gain: Gain | None) -> dict[str, float] | None:
    return None if gain is None else dict(zip(("mean", "low", "high"), gain, strict=True))
