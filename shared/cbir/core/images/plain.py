"""Plain pictures, which most are: colours of eight bits in a JPEG, PNG or WebP that can be decoded without a question.

OpenCV decodes them straight into an array, without the interpreter's lock, in half the time or less that Pillow needs;
both use the same libraries (libjpeg-turbo, libwebp), so that the pixels are the same.  It says nothing of what is wrong
with a file, so whatever it does not decode, and whatever is not plain, is left to Pillow.
"""

from __future__ import annotations

import struct

import cv2
import numpy as np
from numpy.typing import NDArray

from cbir.core.images.containers.bare_file import BareFile
from cbir.core.images.containers.jpeg import jpeg_frame
from cbir.core.images.halving import scale_for
from cbir.core.images.opening import DecodeLimits, is_within

__all__ = ["PlainPicture", "decode_plain"]

#: Pixels as they are stored, and a JPEG's at a half, a quarter and an eighth of the size.
_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_SCALES = {
    1: _RGB,
    2: _RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: _RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: _RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
#: Bits of a WebP that say that it is transparent, or that it moves.
_WEBP_FEATURES = 0x10 | 0x02
_WEBP_ALPHA = 1 << 28

PlainPicture = tuple[NDArray[np.uint8], int, int]


def decode_plain(kind: str, bare: BareFile, limits: DecodeLimits) -> PlainPicture | None:
    """Decode a plain picture.

    Args:
        kind: The file's format.

    Returns:
        (H, W, 3) uint8 RGB as it is stored, neither turned nor converted to sRGB, and a JPEG's reduced as the limits
        say; the width and height in pixels of the original.  None where the file is not plain, breaks a limit or is
        damaged.
    """
    header = _HEADERS[kind](bare) if kind in _HEADERS else None
    if header is None:
        return None
    width, height, progressive = header
    scale = min(8, scale_for(min(width, height), limits.draft_side)) if kind == "JPEG" else 1
    shape = (-(-height // scale), -(-width // scale), 3)
    # A progressive JPEG's coefficients are held until the last scan, whatever the scale.
    held = width * height if progressive else shape[0] * shape[1]
    if not held or not is_within(limits, width, height, held):
        return None
    try:
        pixels = cv2.imdecode(np.frombuffer(bare.data, np.uint8), _SCALES[scale])
    except cv2.error:
        return None
    return (np.asarray(pixels, np.uint8), width, height) if pixels is not None and pixels.shape == shape else None


def _jpeg(bare: BareFile) -> tuple[int, int, bool] | None:
    frame = jpeg_frame(bare.data)
    # A profile of greys is for greys, and here they become colours.
    plain = frame is not None and (frame.components == 3 or (frame.components == 1 and not bare.profile))
    return (frame.width, frame.height, frame.progressive) if frame is not None and plain else None


def _png(bare: BareFile) -> tuple[int, int, bool] | None:
    if bare.data[12:16] != b"IHDR" or len(bare.data) < 33:
        return None
    width, height, depth, colours = struct.unpack_from(">IIBB", bare.data, 16)
    # Colours of three bytes, none of which means transparent.
    if (depth, colours) != (8, 2) or b"tRNS" in bare.data[33 : bare.data.find(b"IDAT", 33)]:
        return None
    return width, height, False


def _webp(bare: BareFile) -> tuple[int, int, bool] | None:
    data, at = bare.data, 12
    if data[12:16] == b"VP8X":
        if len(data) < 30 or data[20] & _WEBP_FEATURES:
            return None
        at = 30
    kind = data[at : at + 4]
    if len(data) < at + 18:
        return None
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, at + 14)
        return width & 0x3FFF, height & 0x3FFF, False
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, at + 9)
        return None if bits & _WEBP_ALPHA else (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), False)
    return None


_HEADERS = {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp}
