"""Bounded decoding: from untrusted bytes to one upright RGB array, or an error that names the reason."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cbir.core.errors import ImageError

__all__ = ["FORMATS", "DecodeLimits", "DecodedImage", "decode_image"]

#: Exceptions of Pillow's decoders on damaged files; RuntimeError is that of AVIF's.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error, EOFError,
    ZeroDivisionError, OverflowError, RuntimeError, MemoryError,
)  # fmt: skip

#: The formats that are decoded; Pillow's others are off, to keep the attack surface small.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


@dataclass(frozen=True)
class DecodeLimits:
    """Bounds on one image.

    Attributes:
        max_bytes: Largest file in bytes.
        max_pixels: Largest width times height, checked in the header before anything is decoded.
        draft_side: A much larger JPEG is decoded at a reduced scale, with at least this many pixels on the shorter side
            (four times as fast for photos of 12 megapixels); None for full scale.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 100_000_000
    draft_side: int | None = 512


@dataclass(frozen=True)
class DecodedImage:
    """An upright image.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, not writeable; smaller than the original where it was decoded at a reduced scale.
        format: Name as in :data:`FORMATS`.
        width: Width of the upright original in pixels.
        height: Height of the upright original in pixels.
    """

    pixels: NDArray[np.uint8]
    format: str
    width: int
    height: int


def decode_image(data: bytes, limits: DecodeLimits | None = None) -> DecodedImage:
    """Decode the first frame of an image file.

    EXIF orientation is applied; transparent images are put on white; 16-bit images are scaled to 8 bits; CMYK, palette
    and grey images become RGB.

    Raises:
        ImageError: ``IMAGE_EMPTY``, ``IMAGE_TOO_LARGE``, ``IMAGE_FORMAT``, ``IMAGE_TOO_MANY_PIXELS``,
            ``IMAGE_TRUNCATED`` or ``IMAGE_CORRUPT``.
    """
    limits = limits or DecodeLimits()
    if not data:
        raise ImageError("the image is empty (0 bytes): send the bytes of an image file", reason="IMAGE_EMPTY")
    if len(data) > limits.max_bytes:
        raise ImageError(
            f"the image file has {len(data):,} bytes, more than the limit of {limits.max_bytes:,}: shrink it first",
            reason="IMAGE_TOO_LARGE",
            bytes=len(data),
            limit=limits.max_bytes,
        )
    with warnings.catch_warnings():
        # Pillow warns of large images, odd EXIF blocks and palette transparency, all of which are handled here.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise ImageError(
                f"the bytes are no image in a known format ({', '.join(FORMATS)})", reason="IMAGE_FORMAT"
            ) from None
        except Image.DecompressionBombError:
            raise _too_many_pixels("an enormous number of", limits) from None
        except _DECODER_ERRORS as error:
            raise _corrupt(error) from error
        with image:
            width, height = image.size
            if width * height > limits.max_pixels:
                raise _too_many_pixels(f"{width:,} x {height:,}", limits)
            if width < 1 or height < 1:
                raise ImageError(f"the image has no pixels ({width} x {height})", reason="IMAGE_CORRUPT")
            kind = image.format or "unknown"
            try:
                orientation = image.getexif().get(0x0112, 1)
                if kind == "JPEG" and limits.draft_side and min(width, height) >= 2 * limits.draft_side:
                    # By the shorter side, so that long panoramas keep enough detail on it for the square input.
                    scale = limits.draft_side / min(width, height)
                    image.draft("RGB", (int(width * scale), int(height * scale)))
                image.load()
                # Orientation first: conversion may lose the tag.  Pillow turns TIFFs upright while it loads them.
                turned = image.getexif().get(0x0112, 1) != 1
                upright = _to_rgb(ImageOps.exif_transpose(image) if turned else image)
                if kind != "JPEG":
                    width, height = upright.size
                elif orientation in (5, 6, 7, 8):
                    width, height = height, width
                pixels = np.asarray(upright, dtype=np.uint8)
            except _DECODER_ERRORS as error:  # fmt: skip
                text = str(error).lower()
                if "truncated" in text or "broken data stream" in text or "unexpected end" in text or not text:
                    raise ImageError(
                        f"the {kind} file is truncated or broken ({error}): send the whole file",
                        reason="IMAGE_TRUNCATED",
                        format=kind,
                    ) from error
                raise _corrupt(error, kind) from error
    return DecodedImage(pixels, kind, width, height)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: transparent pixels on white, grey values of more than 8 bits scaled to 8."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        # Modes "I" and "F" state no range: mostly the data has 16 bits; larger values are scaled to fit.
        top = 65535.0 if values.size == 0 or values.max(initial=0) <= 65535 else float(values.max())
        if image.mode == "F" and values.max(initial=0) <= 1.0:
            top = 1.0
        grey = np.clip(np.nan_to_num(values) * (255.0 / top), 0, 255).astype(np.uint8)
        result = Image.fromarray(grey).convert("RGB")
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        result = Image.new("RGB", layer.size, (255, 255, 255))
        result.paste(layer, mask=layer.getchannel("A"))
    else:
        result = image.convert("RGB")
    return result


def _too_many_pixels(size: str, limits: DecodeLimits) -> ImageError:
    return ImageError(
        f"the image has {size} pixels, more than the limit of {limits.max_pixels:,}: shrink it first",
        reason="IMAGE_TOO_MANY_PIXELS",
        limit=limits.max_pixels,
    )


def _corrupt(error: BaseException, kind: str = "image") -> ImageError:
    detail = " ".join(str(error).split()) or type(error).__name__
    return ImageError(f"the {kind} file is damaged ({detail}): export it again", reason="IMAGE_CORRUPT", format=kind)
