"""The state of a training run: how far it is, what it reports on the way, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Position", "Result", "TrainingProgress"]


@dataclass(frozen=True)
class TrainingProgress:
    """A progress report from the training loop.

    Attributes:
        fraction: Fraction of the schedule that is done, 0..1.
        step: Batches trained so far.
        epoch: Passes over the images so far, with decimals.
        losses: Running means of the loss (``loss``) and of its parts.
        map_at_10: Result of the last validation; None before the first.
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
    """What a training run ends with.

    Attributes:
        state: The averaged weights to export: those of the best validation, or the last ones without validation.
        history: Points of the training curves by ascending ``epoch``; a point with ``map@10`` is a validation.
        best: The point whose weights are in ``state``; None without validation.
        stopped: What ended the run: ``schedule`` or ``patience``.
        seconds: Time spent training, over all runs that were resumed.
    """

    state: dict[str, Tensor]
    history: list[dict[str, float]]
    best: dict[str, float] | None
    stopped: str
    seconds: float


@dataclass
class Position:
    """How far a run is; saved in the checkpoint.

    Attributes:
        step: Batches trained so far.
        epoch: Completed passes over the images.
        batch: Batches trained in the current epoch.
        spent: Seconds spent training.
        stale: Validations since the best one.
        measured: Epoch (with decimals) of the last validation; -1 before the first.
        stopped: Why training ended (see :class:`Result`); empty while it goes on.
        losses: Running means of the loss and its parts.
        history: See :class:`Result`.
        best: See :class:`Result`.
    """

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
