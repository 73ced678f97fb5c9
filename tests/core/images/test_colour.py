"""Colour profiles: what they say becomes sRGB, and what they cannot say costs no image."""

from __future__ import annotations

import numpy as np
import pytest
from icc_profiles import PRIMARIES, profile, to_srgb
from images import encode, gradient
from PIL import Image, ImageCms

from cbir.core.images.decode import decode_image

#: Colours that lie inside sRGB in every one of the spaces, so that nothing is clipped.
MUTED = Image.fromarray((100 + np.asarray(gradient(96, 64)) // 6).astype(np.uint8))


@pytest.mark.parametrize("name", PRIMARIES)
@pytest.mark.parametrize("format_", ["PNG", "TIFF", "JPEG", "WEBP", "AVIF"])
def test_profiles_are_converted_to_srgb(name: str, format_: str) -> None:
    options = {} if format_ in ("PNG", "TIFF") else {"quality": 95}
    if format_ == "JPEG":
        options["subsampling"] = 0
    decoded = decode_image(encode(MUTED, format_, icc_profile=profile(name), **options)).pixels
    wanted = to_srgb(name, np.asarray(MUTED))
    assert np.abs(wanted - np.asarray(MUTED)).max() > 8, "else the test could not fail"
    assert np.abs(decoded - wanted).mean() < (0.6 if not options else 2.5)


def test_the_usual_profile_changes_nothing() -> None:
    usual = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decode_image(encode(gradient(), "PNG", icc_profile=usual)).pixels, np.asarray(gradient()))


def test_transparency_is_laid_on_white_in_any_space() -> None:
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert decode_image(encode(clear, "PNG", icc_profile=profile("Display P3"))).pixels.min() >= 254


@pytest.mark.parametrize("broken", [b"not a profile", b"", profile("Adobe RGB")[:200], bytes(5000)])
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_broken_profiles_are_ignored(broken: bytes, format_: str) -> None:
    options = {"quality": 95} if format_ in ("JPEG", "WEBP") else {}
    decoded = decode_image(encode(gradient(), format_, icc_profile=broken, **options)).pixels
    assert np.abs(decoded.astype(int) - np.asarray(gradient())).mean() < 8


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_profile_of_another_kind_of_colours_is_ignored(mode: str) -> None:
    image = gradient().convert(mode)
    told = decode_image(encode(image, "TIFF", icc_profile=profile("ProPhoto"))).pixels
    assert np.array_equal(told, decode_image(encode(image, "TIFF")).pixels)


def test_lab_becomes_rgb() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(MUTED, srgb, lab, outputMode="LAB")
    assert image is not None
    decoded = decode_image(encode(image, "TIFF")).pixels
    assert np.abs(decoded.astype(int) - np.asarray(MUTED)).mean() < 3
