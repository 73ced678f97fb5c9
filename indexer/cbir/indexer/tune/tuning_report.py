"""The result of a tuning run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cbir.core.vote import VoteSettings

__all__ = ["Gain", "Step", "TuningReport"]

#: Mean, and the ends of its 95 % bootstrap interval.
Gain = tuple[float, float, float]


@dataclass(frozen=True)
class Step:
    """What one part of the new vote alone gains over the live one."""

    name: str
    gain: Gain


@dataclass(frozen=True)
class TuningReport:
    """MAP@10 on queries whose labels taught neither metric nor heads.

    Attributes:
        queries: Queries measured; 0: there were too few labels, so sharpening without labels was chosen.
        before: MAP@10 of the vote as it was.
        after: MAP@10 of the new vote on the queries that chose it.
        held_out: MAP@10 of votes chosen on one half of the queries, on the other half.
        gain: Mean of ``held_out`` less ``before``, query by query, with its 95 % bootstrap interval; zeros where the
            vote proved to be the best one already, and stays.
        equal: MAP@10 with equal weights and otherwise the new vote.
        members: MAP@10 of each member alone, with otherwise the new vote.
        ece: Expected calibration error over the first ten hits, each query scored by a curve fitted to the others.
        version: The version published, or None: no gain.
        rejected: The figures and the vote are those of a vote that is not in use, as it is no gain.
        steps: Its parts, measured where the whole is no gain.
        whole_gain: What the whole gained, where it was not taken.
        taken: The part that was taken in place of the whole; the figures are its own then.
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
