"""Perceptual hash of 64 bits: those of near-duplicate images differ in few bits."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cbir.core.images.crop import Box

__all__ = ["distances", "perceptual_hash"]


def perceptual_hash(pixels: NDArray[np.uint8], box: Box) -> int:
    """Hash the cropped image: a bit tells whether one of the 8 x 8 lowest DCT coefficients is above their median.

    Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010 (pHash).

    Args:
        pixels: (H, W, 3) uint8 RGB.
        box: The part of the pixels to hash.

    Returns:
        An unsigned 64-bit number.
    """
    region = np.ascontiguousarray(pixels[box.top : box.bottom, box.left : box.right])
    grey = cv2.resize(cv2.cvtColor(region, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(grey.astype(np.float32))[:8, :8].ravel()
    bits = low > np.median(low[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def distances(hashes: NDArray[np.uint64], other: int) -> NDArray[np.uint8]:
    """(N,) number of bits in which each hash differs from ``other``."""
    return np.asarray(np.bitwise_count(hashes ^ np.uint64(other)), dtype=np.uint8)
