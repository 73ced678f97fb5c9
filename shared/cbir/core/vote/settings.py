"""The settings of the vote, which ``cbir tune`` chooses and an index version keeps in ``vote.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cbir.core.vote.calibration import Curve, logistic_curve

__all__ = ["VoteSettings"]


@dataclass(frozen=True)
class VoteSettings:
    """How the members' similarities and the labels become a score.

    Attributes:
        weights: Weight of each member; they need not sum to 1.
        neighbours: How many of the nearest images vote for labels (K of the label vote).
        temperature: T of the label vote: a neighbour weighs exp(score / T).
        label_share: What a label with probability 1 adds to the score of its images (lambda of the label vote).
        head_share: Share of the linear heads in P(label | query), 0..1.
        head_temperature: Temperature of the heads' softmax.
        text_share: Share of the class names in P(label | query), 0..1.  It is multiplied by the trust in the members
            with a text tower (:func:`cbir.core.search.zero_shot.names_trust`).
        expansion_neighbours: K of query expansion; 0 for no expansion.
        expansion_exponent: alpha of query expansion: a neighbour weighs its score to this power.
        augmentation_neighbours: K of the augmentation that was applied to the stored vectors; 0 for none.
        augmentation_exponent: alpha of the augmentation.
        calibration: The curve from fused score to probability of relevance, or None.
        tuned: Whether ``cbir tune`` chose these settings.
        dims: Components kept of a member, where tuning chose another number than the ensemble file.
    """

    weights: Mapping[str, float]
    neighbours: int = 10
    temperature: float = 0.05
    label_share: float = 0.0
    head_share: float = 0.5
    head_temperature: float = 0.1
    text_share: float = 0.25
    expansion_neighbours: int = 0
    expansion_exponent: float = 3.0
    augmentation_neighbours: int = 0
    augmentation_exponent: float = 3.0
    calibration: Curve | None = None
    tuned: bool = False
    dims: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "weights": dict(self.weights), "dims": dict(self.dims)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> VoteSettings:
        """Inverse of :meth:`to_json`."""
        return cls(**{**data, "calibration": _curve(data.get("calibration"))})


def _curve(data: Sequence[Any] | None) -> Curve | None:
    if not data:
        return None
    if isinstance(data[0], int | float):  # older versions stored slope and offset of a logistic curve
        return logistic_curve(*data)
    return tuple((float(score), float(probability)) for score, probability in data)
