"""Bounded decoding: untrusted bytes in, one upright RGB array out, or a named refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from cbir.core.errors import ImageError
from cbir.core.images.colour import array_to_srgb, to_srgb
from cbir.core.images.containers.bare_file import BareFile
from cbir.core.images.containers.jpeg import END, OTHER_ENDS, without_end
from cbir.core.images.formats import FORMATS
from cbir.core.images.grey_range import eight_bits
from cbir.core.images.halving import reduced
from cbir.core.images.opening import (
    DecodeLimits,
    OpenedImage,
    decoder_errors,
    open_bare,
    open_image,
    strip_metadata,
)
from cbir.core.images.orientation import turn, turn_pixels
from cbir.core.images.plain import decode_plain

__all__ = ["FORMATS", "DecodeLimits", "DecodedImage", "decode_image"]

#: Colours of 16 bits whose upper bytes are all below this hold fewer bits: 14 or less.
_DARK = 64


@dataclass(frozen=True)
class DecodedImage:
    """An upright image.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, not writeable.
        format: Name as in :data:`FORMATS`, or ``HEIF`` or ``JXL`` where the extra ``formats`` is installed.
        width: Width of the upright original in pixels (the pixels may be fewer: reduced-scale decoding).
        height: Likewise.
    """

    pixels: NDArray[np.uint8]
    format: str
    width: int
    height: int


def decode_image(data: bytes, limits: DecodeLimits | None = None) -> DecodedImage:
    """Decode the first frame of an image file.  A function of bytes and limits alone.

    Metadata never costs an image: of EXIF and XMP the orientation is read and applied, an ICC profile converts the
    colours to sRGB, and whatever else a file says about itself is not looked at, broken or not.  Transparency is laid
    on white; deep greys are scaled to 8 bits (:func:`~cbir.core.images.grey_range.eight_bits` has the rules); CMYK,
    Lab, palette and grey images become RGB.  A JPEG that lacks nothing but its end marker is whole.

    Raises:
        ImageError: ``IMAGE_EMPTY``, ``IMAGE_TOO_LARGE``, ``IMAGE_FORMAT``, ``IMAGE_TOO_MANY_PIXELS``,
            ``IMAGE_TRUNCATED`` or ``IMAGE_CORRUPT``.
    """
    limits = limits or DecodeLimits()
    kind, bare = strip_metadata(data, limits)
    if plain := decode_plain(kind, bare, limits):
        stored, width, height = plain
        with decoder_errors(kind):
            colours = array_to_srgb(stored, bare.profile)
        pixels = turn_pixels(reduced(colours, limits.draft_side), bare.orientation)
        if bare.orientation >= 5:
            width, height = height, width
    else:
        pixels, width, height = _decode_other(kind, bare, limits)
    pixels.flags.writeable = False
    return DecodedImage(pixels, kind, width, height)


def _decode_other(kind: str, bare: BareFile, limits: DecodeLimits) -> tuple[NDArray[np.uint8], int, int]:
    """Decode what is not plain with Pillow, and find out what is wrong with what cannot be decoded."""
    with open_image(kind, bare, limits) as opened:
        with decoder_errors(kind):
            image = _load(opened, limits)
            upright = turn(_to_rgb(image, opened, limits), opened.orientation)
            pixels = np.asarray(upright, dtype=np.uint8)
            if pixels.ndim != 3 or pixels.shape[2] != 3:
                raise ImageError("the decoder gave no colours: export it again", reason="IMAGE_CORRUPT")
        return reduced(pixels, limits.draft_side), opened.width, opened.height


def _load(opened: OpenedImage, limits: DecodeLimits) -> Image.Image:
    try:
        opened.image.load()
    except OSError as error:
        if opened.format != "JPEG" or "truncated" not in str(error):
            raise
        return _load_cut_jpeg(opened.bare.data, limits, error)
    return opened.image


def _load_cut_jpeg(data: bytes, limits: DecodeLimits, error: OSError) -> Image.Image:
    """Load a JPEG without an end; raises ``error`` where more is missing than that.

    The decoder fills with grey what is missing, and tells nobody.  But where nothing is missing, it makes no
    difference what comes after the data.
    """
    data = without_end(data)
    whole = open_bare(data + END, "JPEG", limits)
    pixels = np.asarray(whole)
    for other_end in OTHER_ENDS:
        try:
            with open_bare(data + other_end + END, "JPEG", limits) as other:
                same = np.array_equal(pixels, np.asarray(other))
        except OSError:
            same = False
        if not same:
            raise error
    return whole


def _to_rgb(image: Image.Image, opened: OpenedImage, limits: DecodeLimits) -> Image.Image:
    """Convert to sRGB of 8 bits: transparency on white, deep greys scaled."""
    profile = opened.bare.profile or image.info.get("icc_profile")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = Image.fromarray(eight_bits(np.asarray(image), opened.bare.no_data))
    elif ";16" in opened.rawmode and image.mode in ("RGB", "RGBA", "RGBX"):
        image = _deep_colours(image, opened, limits)
    if image.mode == "P" and "transparency" not in image.info:
        image = image.convert("RGB")
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        image = Image.new("RGB", layer.size, (255, 255, 255))
        image.paste(layer, mask=layer.getchannel("A"))
    return to_srgb(image, profile)


def _deep_colours(image: Image.Image, opened: OpenedImage, limits: DecodeLimits) -> Image.Image:
    """Take the lower bytes of 16-bit colours into account where the upper ones are dark; Pillow drops them."""
    upper = np.asarray(image)
    if upper[..., :3].max(initial=0) >= _DARK:
        return image
    swapped = opened.rawmode[:-1] + ("L" if opened.rawmode.endswith("B") else "B")
    with open_bare(opened.bare.data, opened.format, limits) as other:
        assert isinstance(other, ImageFile.ImageFile)
        other.tile = [tile._replace(args=_swap(tile.args, swapped)) for tile in other.tile]
        other.load()
        deep = upper.astype(np.uint16) << 8 | np.asarray(other)
    height, width = deep.shape[:2]
    parts = [eight_bits(deep[..., :3].reshape(height, 3 * width)).reshape(height, width, 3)]
    if image.mode == "RGBA":
        parts.append(eight_bits(deep[..., 3])[..., None])
    return Image.fromarray(np.concatenate(parts, axis=2))


def _swap(arguments: Any, rawmode: str) -> Any:
    return (rawmode, *arguments[1:]) if isinstance(arguments, tuple) else rawmode
