"""Colours of other spaces as sRGB, which is what networks were shown: Display P3, Adobe RGB, ProPhoto, CMYK."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

__all__ = ["array_to_srgb", "load_colours", "to_srgb"]

#: Larger profiles than printing houses make are not looked at.
_MOST_BYTES = 4 * 2**20
#: Differences of 8-bit colours that count as none: profiles called sRGB are rounded in various ways.
_SAME = 2
_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an opaque 8-bit image as RGB; a profile that does not suit it, or is broken, is ignored.

    Args:
        image: Of mode ``L``, ``RGB``, ``CMYK`` or ``LAB``; of other modes as Pillow converts them.
        profile: An ICC profile.
    """
    if image.mode == "LAB":
        transform = _lab()
    elif profile and len(profile) <= _MOST_BYTES and image.mode in ("L", "RGB", "CMYK"):
        transform = _transform(profile, image.mode)
    else:
        transform = None
    if transform is not None:
        converted = ImageCms.applyTransform(image, transform)
        if converted is not None:
            return converted
    return image if image.mode == "RGB" else image.convert("RGB")


def array_to_srgb(pixels: NDArray[np.uint8], profile: bytes | None) -> NDArray[np.uint8]:
    """As :func:`to_srgb`, for (H, W, 3) uint8 colours; without a profile, or with that of sRGB, the same array."""
    if not profile or len(profile) > _MOST_BYTES or _transform(profile, "RGB") is None:
        return pixels
    return np.array(to_srgb(Image.fromarray(pixels), profile))


def load_colours() -> None:
    """Convert a colour of each space now, so that nothing need be loaded later."""
    profile = ImageCms.ImageCmsProfile(_srgb()).tobytes()
    _transform(profile, "RGB")
    _lab()


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> Any | None:
    """The way from a profile to sRGB; None where nothing is to be done or nothing can be."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _SPACES.get(source.profile.xcolor_space) != mode:
            return None
        transform = ImageCms.buildTransform(
            source, _srgb(), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        )
        probe = _probe(mode)
        converted = ImageCms.applyTransform(probe, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return None
    if converted is None:
        return None
    difference = np.asarray(converted, np.int16) - np.asarray(probe.convert("RGB"), np.int16)
    return None if np.abs(difference).max() <= _SAME else transform


@lru_cache(maxsize=1)
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


@lru_cache(maxsize=1)
def _lab() -> Any:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _srgb(), "LAB", "RGB")


def _probe(mode: str) -> Image.Image:
    """A picture of colours from all over the space."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    steps = np.linspace(0, 255, 6).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(*[steps] * bands, indexing="ij"), axis=-1).reshape(1, -1, bands)
    return Image.frombytes(mode, (grid.shape[1], 1), grid.tobytes())
