"""How the members' opinions become a score: the settings that tuning chooses and a version keeps (``vote.json``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cbir.core.vote.calibration import Curve, logistic_curve

__all__ = ["VoteSettings"]


@dataclass(frozen=True)
class VoteSettings:
    """How the members' opinions become a score (``vote.json``).

    Attributes:
        weights: By member; they need not sum to 1.
        neighbours: K of the label vote.
        temperature: T of the label vote.
        label_share: lambda of the label vote; 0 leaves labels out of the score.
        head_share: The linear heads' part of P(label | query), 0..1.
        head_temperature: Of their softmax.
        text_share: The class names' part of P(label | query), 0..1, where members with a text tower are fully trusted
            in them, and less by as much as they are not (:func:`cbir.core.search.zero_shot.names_trust`).
        expansion_neighbours: K of query expansion; 0 leaves queries as they are.
        expansion_exponent: alpha of query expansion.
        augmentation_neighbours: K of the augmentation that the stored vectors went through; 0: none.
        augmentation_exponent: Its alpha.
        calibration: The curve from fused score to probability of relevance, or None.
        tuned: `cbir tune` chose these.
        dims: Components kept of a member, where tuning chose other ones than the ensemble file.
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
        """Plain data that :meth:`from_json` takes back."""
        return {**vars(self), "weights": dict(self.weights), "dims": dict(self.dims)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> VoteSettings:
        """Inverse of :meth:`to_json`."""
        return cls(**{**data, "calibration": _curve(data.get("calibration"))})


def _curve(data: Sequence[Any] | None) -> Curve | None:
    if not data:
        return None
    if isinstance(data[0], int | float):  # of versions that kept slope and offset of a logistic curve
        return logistic_curve(*data)
    return tuple((float(score), float(probability)) for score, probability in data)
