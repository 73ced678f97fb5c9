"""Decoding: every format upright, every bad file refused by name."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from images import encode, gradient, pattern, png_bomb, truncated_jpeg
from PIL import Image

from cbir.core.errors import ImageError
from cbir.core.images import DecodeLimits, decode_image


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_gives_the_same_upright_picture(format_: str) -> None:
    options = {"quality": 95} if format_ in ("JPEG", "WEBP", "AVIF") else {}
    decoded = decode_image(encode(gradient(), format_, **options))
    assert (decoded.format, decoded.width, decoded.height) == (format_, 48, 32)
    difference = np.abs(decoded.pixels.astype(int) - np.asarray(gradient()).astype(int))
    assert difference.mean() < 8
    assert decoded.pixels.dtype == np.uint8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, format_: str) -> None:
    # Stored pixels such that applying the tag gives the gradient back.
    inverse = {
        1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE], 8: [Image.Transpose.ROTATE_270],
    }[orientation]  # fmt: skip
    stored = gradient()
    for step in inverse:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format_ in ("JPEG", "WEBP") else {}
    decoded = decode_image(encode(stored, format_, exif=exif, **options))
    assert (decoded.width, decoded.height) == (48, 32)
    assert decoded.pixels.shape == (32, 48, 3)
    assert np.abs(decoded.pixels.astype(int) - np.asarray(gradient()).astype(int)).mean() < 8


def test_modes_become_rgb() -> None:
    grey = Image.fromarray(np.linspace(0, 65535, 48 * 32).reshape(32, 48).astype(np.uint16))
    sixteen = decode_image(encode(grey, "PNG")).pixels
    assert (sixteen[0, 0].max(), sixteen[-1, -1].min()) == (0, 255)
    assert abs(int(sixteen[16, 0, 0]) - 128) <= 2
    cmyk = decode_image(encode(gradient().convert("CMYK"), "JPEG", quality=95)).pixels
    assert np.abs(cmyk.astype(int) - np.asarray(gradient()).astype(int)).mean() < 12
    palette = decode_image(encode(gradient().quantize(64), "GIF")).pixels
    assert np.abs(palette.astype(int) - np.asarray(gradient()).astype(int)).mean() < 12
    assert decode_image(encode(gradient().convert("1"), "PNG")).pixels.shape == (32, 48, 3)


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert (decode_image(encode(clear, "PNG")).pixels == 255).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "IMAGE_EMPTY"),
        (b"these are words, not pixels", "IMAGE_FORMAT"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "IMAGE_FORMAT"),
        (truncated_jpeg(), "IMAGE_TRUNCATED"),
        (encode(gradient(), "PNG")[:60], "IMAGE_TRUNCATED"),
        (b"\xff\xd8\xff\xe0", "IMAGE_FORMAT"),
    ],
)
def test_bad_bytes_are_refused_by_name(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


def test_bombs_are_refused_by_their_header() -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(png_bomb())
    assert caught.value.reason == "IMAGE_TOO_MANY_PIXELS"
    with pytest.raises(ImageError) as caught:
        decode_image(png_bomb(11000))
    assert caught.value.reason == "IMAGE_TOO_MANY_PIXELS"


def test_large_files_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(encode(gradient(), "PNG"), DecodeLimits(max_bytes=100))
    assert caught.value.reason == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("position", range(0, 600, 37))
def test_damage_anywhere_is_an_image_error_or_a_picture(position: int) -> None:
    for format_ in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"):
        data = bytearray(encode(pattern(0, 1), format_))
        data[position % len(data)] ^= 0xFF
        # Any other exception fails the test.
        with contextlib.suppress(ImageError):
            assert decode_image(bytes(data)).pixels.ndim == 3


def test_large_jpegs_are_decoded_at_a_reduced_scale() -> None:
    data = encode(gradient(4000, 3000), "JPEG", quality=90)
    decoded = decode_image(data, DecodeLimits(draft_side=512))
    assert (decoded.width, decoded.height) == (4000, 3000)
    assert 512 <= min(decoded.pixels.shape[:2]) < 1500
    assert decode_image(data, DecodeLimits(draft_side=None)).pixels.shape == (3000, 4000, 3)


def test_damaged_avif_is_refused_not_raised() -> None:
    # Pillow's AVIF decoder raises RuntimeError where the others raise OSError.
    whole = encode(pattern(3, 1, 96), "AVIF")
    refused = 0
    for position in range(0, len(whole), 7):
        data = bytearray(whole)
        data[position] ^= 0xFF
        try:
            decode_image(bytes(data))
        except ImageError as error:
            refused += error.reason.startswith("IMAGE_")
    assert refused > 5
