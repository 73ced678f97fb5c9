"""The input format of a network."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["InputFormat"]


@dataclass(frozen=True)
class InputFormat:
    """The square side in pixels, the RGB mean and std on the 0..1 scale, and the resampling; all are given."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
