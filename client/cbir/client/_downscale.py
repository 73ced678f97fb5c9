"""Large images are made smaller before they are sent, to what the server would make of them anyway."""

from __future__ import annotations

import io
import os
import warnings
from typing import TYPE_CHECKING

from cbir.client._image_source import PILLOW_ERRORS, opaque, orientation_of, upright

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["WORTHWHILE_BYTES", "WORTHWHILE_PIXELS", "downscaled"]

#: Smaller files are sent as they are: there is little to gain.
WORTHWHILE_BYTES = 2**17
#: Likewise of images that are no files yet.
WORTHWHILE_PIXELS = 2**19
#: Modes whose colours survive; others are left to the server, which knows more of them.
_PLAIN_MODES = ("L", "LA", "P", "RGB", "RGBA")


def downscaled(
    source: bytes | os.PathLike[str] | str | PIL.Image.Image, side: int
) -> tuple[bytes, tuple[float, float]] | None:
    """Make an image smaller whose shorter side is at least twice as long as the server can use.

    A JPEG is decoded at the same reduced scale at which the server would decode it, so that the server sees the very
    same pixels; of others, squares of so many pixels are averaged.

    Args:
        source: The bytes or the path of an image file, or a PIL image.
        side: What the server can use of the shorter side, in pixels.

    Returns:
        The bytes of a WebP without loss, and the width and height in pixels of the upright original divided by those of
        what is sent; None where the image is to be sent as it is: it is small, or this Pillow cannot read it.
    """
    try:
        import PIL.Image
    except ModuleNotFoundError:
        return None
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and of many pixels; the server will say what matters.
        warnings.simplefilter("ignore")
        try:
            if isinstance(source, PIL.Image.Image):
                return _smaller(source, side)
            with PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                return _smaller(image, side)
        except (*PILLOW_ERRORS, MemoryError, PIL.Image.DecompressionBombError):
            return None


def _smaller(image: PIL.Image.Image, side: int) -> tuple[bytes, tuple[float, float]] | None:
    width, height = image.size
    if min(width, height) < 2 * side or image.mode not in _PLAIN_MODES:
        return None
    # Of 16 bits Pillow keeps the upper 8; the server looks at the others too.
    if any(";16" in str(tile) for tile in getattr(image, "tile", ())):
        return None
    turned = orientation_of(image) in (5, 6, 7, 8)
    if getattr(image, "format", None) == "JPEG":
        scale = side / min(width, height)
        # The same numbers as on the server, and so the same pixels.
        image.draft("RGB", (int(width * scale), int(height * scale)))
    standing = upright(image)
    # Powers of two are what the server reduces by.
    factor = 1 << max(0, (min(standing.size) // side).bit_length() - 1)
    if factor > 1:
        standing = standing.convert("RGBA" if standing.has_transparency_data else "RGB").reduce(factor)
    original = (height, width) if turned else (width, height)
    ratio = (original[0] / standing.width, original[1] / standing.height)
    return _exactly(standing), ratio


def _exactly(image: PIL.Image.Image) -> bytes:
    """Write every pixel as it is; a tenth of the bytes, in a JPEG, would change the order of hits that are close."""
    buffer = io.BytesIO()
    profile = image.info.get("icc_profile")
    # The quickest of the ways to compress without loss.
    opaque(image).save(buffer, "WEBP", lossless=True, quality=0, method=0, icc_profile=profile)
    return buffer.getvalue()
