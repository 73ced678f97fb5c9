"""What a run of tuning found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cbir.core.vote import VoteSettings

__all__ = ["TuningReport"]


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
    """

    index: str
    queries: int
    query_source: str
    before: float | None
    after: float | None
    held_out: float | None
    gain: tuple[float, float, float] | None
    equal: float | None
    members: Mapping[str, float]
    vote: VoteSettings
    ece: float | None
    version: str | None

    def to_json(self) -> dict[str, Any]:
        """The document `cbir tune --json` prints."""
        return {
            "index": self.index,
            "version": self.version,
            "published": self.version is not None,
            "queries": self.queries,
            "query_source": self.query_source,
            "map@10": {"before": self.before, "after": self.after, "held_out": self.held_out, "equal": self.equal},
            "gain": None if self.gain is None else dict(zip(("mean", "low", "high"), self.gain, strict=True)),
            "members": {name: {"map@10": value} for name, value in self.members.items()},
            "vote": self.vote.to_json(),
            "ece": self.ece,
        }
