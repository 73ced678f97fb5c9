"""How far a run is, what it reports on the way, and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Position", "Result", "TrainingProgress"]


@dataclass(frozen=True)
class TrainingProgress:
    """One report from the loop.

    Attributes:
        fraction: Place in the schedule, 0..1.
        epoch: Passes over the images, with decimals.
        losses: Running means of the loss (``loss``) and its parts.
        map_at_10: The last validation, None before the first.
    """

    fraction: float
    step: int
    epoch: float
    losses: Mapping[str, float]
    map_at_10: float | None
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Result:
    """What the loop left.

    Attributes:
        state: The averaged weights that are kept: of the best epoch where there was validation, else the last.
        history: Points of the curves, by rising ``epoch``; those with ``map@10`` are validations.
        best: The validation that gave ``state``, None without validation.
        stopped: ``schedule`` or ``patience``.
    """

    state: dict[str, Tensor]
    history: list[dict[str, float]]
    best: dict[str, float] | None
    stopped: str
    seconds: float


@dataclass
class Position:
    """How far a run is; all of it goes into the checkpoint."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    spent: float = 0.0
    stale: int = 0
    measured: float = -1.0
    stopped: str = ""
    losses: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
