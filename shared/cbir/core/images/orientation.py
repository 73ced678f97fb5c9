"""Which way up a picture is: the one EXIF entry that a picture needs, read without believing the rest."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from PIL import Image

# What turns arrays is imported where one is turned: headers are read, and helps printed, without it.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["exif_orientation", "turn", "turn_pixels", "xmp_orientation"]

_TAG = 0x0112
#: Most entries of a directory that are looked at; cameras write fewer than a hundred.
_MAX_ENTRIES = 1024
#: Whole-number types of TIFF and how they are read; writers that should use SHORT also use the others.
_WHOLE = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
_XMP = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])\b")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def exif_orientation(exif: bytes) -> int | None:
    """Return the orientation (1..8) that an EXIF block tells, ``None`` where it tells none that can be used.

    Args:
        exif: A TIFF header and its first directory, with or without ``Exif`` and two zeros before them.  Whatever else
            is broken in it does not matter.
    """
    block = exif[6:] if exif[:4] == b"Exif" else exif
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return None
    (start,) = struct.unpack_from(order + "I", block, 4)
    if start + 2 > len(block):
        return None
    (count,) = struct.unpack_from(order + "H", block, start)
    for at in range(start + 2, start + 2 + 12 * min(count, _MAX_ENTRIES), 12):
        if at + 12 > len(block):
            return None
        tag, kind = struct.unpack_from(order + "HH", block, at)
        if tag == _TAG and kind in _WHOLE:
            value = struct.unpack_from(order + _WHOLE[kind], block, at + 8)[0]
            return value if 1 <= value <= 8 else None
    return None


def xmp_orientation(xmp: bytes) -> int | None:
    """Return the orientation (1..8) that an XMP packet tells; it counts where EXIF tells none."""
    found = _XMP.search(xmp)
    return int(found[1]) if found else None


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Turn stored pixels upright."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def turn_pixels(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn the stored pixels of an (H, W, C) array upright, without the interpreter's lock."""
    import cv2
    import numpy as np

    if orientation in (5, 7):
        pixels = np.asarray(cv2.transpose(pixels), np.uint8)
    # After the transposition that 5 and 7 begin with.
    turns = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 7: cv2.ROTATE_180, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
    if (rotation := turns.get(orientation)) is not None:
        return np.asarray(cv2.rotate(pixels, rotation), np.uint8)
    mirror = {2: 1, 4: 0}.get(orientation)
    return pixels if mirror is None else np.asarray(cv2.flip(pixels, mirror), np.uint8)
