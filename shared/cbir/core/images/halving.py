"""Halving: a picture at half its size, each pixel the mean of four, until it is as small as wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

# What halves arrays is imported where one is halved: limits are known, and helps printed, without it.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["halved", "reduced", "scale_for"]


def scale_for(shorter: int, side: int | None) -> int:
    """The largest power of two that leaves at least ``side`` pixels of a shorter side; 1 where there is no such bound.

    Powers of two because JPEGs are decoded at these scales, and because halving is several times as fast as averaging
    squares of another size.
    """
    return 1 << (max(1, shorter // side).bit_length() - 1) if side else 1


def halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The means of squares of four pixels; an odd last row or column is left out.

    Args:
        pixels: (H, W) or (H, W, C) with at least two rows and columns.
    """
    import cv2
    import numpy as np

    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    even = pixels[: 2 * height, : 2 * width]
    return np.asarray(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def reduced(pixels: NDArray[np.uint8], side: int | None) -> NDArray[np.uint8]:
    """Halve a picture as often as its shorter side stays at least ``side`` pixels long."""
    scale = scale_for(min(pixels.shape[:2]), side)
    while scale > 1:
        pixels, scale = halved(pixels), scale // 2
    return pixels
