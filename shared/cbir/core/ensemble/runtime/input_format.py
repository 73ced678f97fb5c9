"""What a network takes: the size, scale and resampling of its input, as one value."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["InputFormat"]


@dataclass(frozen=True)
class InputFormat:
    """A fully resolved image input: square side in pixels, RGB mean and std on the 0..1 scale, resampling."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
