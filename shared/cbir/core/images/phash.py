"""Perceptual hash of 64 bits: those of near-duplicate images differ in few bits; what turning does
to it; and the small pictures that tell more than hashes.
"""

from __future__ import annotations

from enum import StrEnum

import cv2
import numpy as np
from numpy.typing import NDArray

from cbir.core.images.crop import Box
from cbir.core.images.halving import reduced

__all__ = ["Symmetry", "correlation", "distances", "perceptual_hash", "small_picture", "turned", "turned_hashes"]

_SIDE = 32
#: Least standard deviation of a small picture's pixels, of 255: flat ones look the same whatever they show.
_LEAST_CONTRAST = 4.0

#: Side of the picture of which the coefficients are computed.
_SIDE = 32


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
    # The mean of an area is that of the means of its parts.
    grey = reduced(np.asarray(cv2.cvtColor(region, cv2.COLOR_RGB2GRAY), np.uint8), 2 * _SIDE)
    grey = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(grey.astype(np.float32))[:8, :8].ravel()
    bits = low > np.median(low[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def distances(hashes: NDArray[np.uint64], other: int) -> NDArray[np.uint8]:
    """(N,) number of bits in which each hash differs from ``other``."""
    return np.asarray(np.bitwise_count(hashes ^ np.uint64(other)), dtype=np.uint8)


def small_picture(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8] | None:
    """(32, 32, 3) the cropped image, averaged; None where it is flat, so that nothing can be told by its pixels."""
    region = np.ascontiguousarray(pixels[box.top : box.bottom, box.left : box.right])
    if not region.size:
        return None
    small = np.asarray(cv2.resize(region, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), np.uint8)
    return small if small.std(axis=(0, 1)).max() >= _LEAST_CONTRAST else None


def correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Correlation of the pixels of two small pictures, at most 1; brightness and contrast do not count."""
    parts = [part.astype(np.float32) - part.mean(axis=(0, 1), dtype=np.float32) for part in (one, other)]
    return float((parts[0] * parts[1]).sum() / np.sqrt((parts[0] ** 2).sum() * (parts[1] ** 2).sum()))


class Symmetry(StrEnum):
    """A way to turn or mirror a picture; turns are clockwise."""

    ROTATE_90 = "rotate-90"
    ROTATE_180 = "rotate-180"
    ROTATE_270 = "rotate-270"
    MIRROR = "mirror"
    FLIP = "flip"
    TRANSPOSE = "transpose"
    TRANSVERSE = "transverse"


#: Whether rows and columns change places, and then whether rows, and columns, come in the opposite order.
_STEPS = {
    Symmetry.ROTATE_90: (True, False, True),
    Symmetry.ROTATE_180: (False, True, True),
    Symmetry.ROTATE_270: (True, True, False),
    Symmetry.MIRROR: (False, False, True),
    Symmetry.FLIP: (False, True, False),
    Symmetry.TRANSPOSE: (True, False, False),
    Symmetry.TRANSVERSE: (True, True, True),
}


def turned(pixels: NDArray[np.uint8], symmetry: Symmetry) -> NDArray[np.uint8]:
    """The (H, W, 3) picture, turned or mirrored."""
    transposed, upside_down, mirrored = _STEPS[symmetry]
    standing = pixels.swapaxes(0, 1) if transposed else pixels
    return standing[:: -1 if upside_down else 1, :: -1 if mirrored else 1]


def turned_hashes(hashes: NDArray[np.uint64], symmetry: Symmetry) -> NDArray[np.uint64]:
    """(N,) about what the hashes of the pictures would be if these were turned or mirrored.

    Coefficients change places and signs, and a bit tells on which side of the median one lies.  As the median of a
    photo's coefficients is near zero, a changed sign nearly always is a changed bit: half of the hashes of photos are
    right but for 2 bits, 98 % but for 8.  Without a change of sign, as in a transposition, they are exact.
    """
    transposed, upside_down, mirrored = _STEPS[symmetry]
    bits = np.unpackbits(hashes.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1).reshape(-1, 8, 8)
    if transposed:
        bits = bits.swapaxes(1, 2)
    down, across = np.mgrid[:8, :8].astype(np.uint8) % 2
    bits = bits ^ (down * upside_down ^ across * mirrored)
    return np.packbits(bits.reshape(-1, 64), axis=1).view(">u8").ravel().astype(np.uint64)
