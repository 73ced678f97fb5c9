"""Every kind of pixel that Pillow opens becomes an upright picture of 8-bit colours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import encode, gradient, pattern
from PIL import Image, TiffImagePlugin
from tiffs import tiff

from cbir.core.errors import ImageError
from cbir.core.images.decode import DecodeLimits, decode_image

WIDTH, HEIGHT = 24, 16
#: Pillow names these but has no decoder for them: bits of a byte in the other order.
_REVERSED = {"L;IR", "P;1R", "P;2R", "P;4R"}
KINDS = sorted(
    {
        (key, rawmode)
        for key, (_, rawmode) in TiffImagePlugin.OPEN_INFO.items()
        if rawmode not in _REVERSED and key[0] in (b"II", b"MM")
    },
    key=str,
)


def noise(bits: tuple[int, ...], sample_format: tuple[int, ...], order: str, seed: int) -> bytes:
    """Random pixels: any bytes are, but for floats."""
    rng = np.random.default_rng(seed)
    if sample_format == (3,):
        kind = np.dtype({16: "f2", 32: "f4", 64: "f8"}[bits[0]]).newbyteorder(order)
        return rng.uniform(0, 200, WIDTH * HEIGHT * len(bits)).astype(kind).tobytes()
    return rng.bytes(HEIGHT * ((WIDTH * sum(bits) + 7) // 8))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(range(1, 9)), st.integers(0, 2**32 - 1))
def test_every_kind_of_tiff_is_a_picture_whichever_way_it_is_turned(
    kind: tuple[tuple[bytes, int, tuple[int, ...], int, tuple[int, ...], tuple[int, ...]], str],
    orientation: int,
    seed: int,
) -> None:
    (prefix, photometric, sample_format, fill_order, bits, extra), _ = kind
    order = "<" if prefix[:2] == b"II" else ">"
    data = noise(bits, sample_format, order, seed)

    def decoded(orientation: int) -> np.ndarray:
        return decode_image(
            tiff(
                (WIDTH, HEIGHT), photometric, bits, data, sample_format=sample_format, fill_order=fill_order,
                extra=extra, order=order, orientation=orientation,
            )
        ).pixels  # fmt: skip

    plain = decoded(1)
    assert plain.shape == (HEIGHT, WIDTH, 3)
    assert plain.std() > 20, "random values are no flat picture"
    turned = {
        1: plain, 2: plain[:, ::-1], 3: plain[::-1, ::-1], 4: plain[::-1], 5: plain.transpose(1, 0, 2),
        6: plain[::-1].transpose(1, 0, 2), 7: plain[::-1, ::-1].transpose(1, 0, 2),
        8: plain[:, ::-1].transpose(1, 0, 2),
    }  # fmt: skip
    assert np.array_equal(decoded(orientation), turned[orientation])


def test_big_tiffs_are_read() -> None:
    pixels = np.asarray(gradient())
    data = tiff((48, 32), 2, (8, 8, 8), pixels.tobytes(), big=True)
    assert np.array_equal(decode_image(data).pixels, pixels)


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "JPEG", "WEBP", "GIF", "BMP", "AVIF"])
def test_every_mode_that_a_format_can_hold_is_a_picture(format_: str) -> None:
    grey = gradient().convert("L")
    held = []
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"):
        deep = mode in ("I;16", "I", "F")
        image = grey.convert(mode) if deep else gradient().convert(mode)
        try:
            data = encode(image, format_)
        except (OSError, ValueError, KeyError, RuntimeError):
            continue  # the format cannot hold it
        held.append(mode)
        decoded = decode_image(data).pixels
        wanted = grey.convert("RGB") if deep else gradient() if mode == "LAB" else image.convert("RGB")
        assert np.abs(decoded.astype(int) - np.asarray(wanted)).mean() < 16, mode
    assert {"L", "RGB"} <= set(held)


# JPEGs that end early


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("quality", [60, 95])
@pytest.mark.parametrize("kind", range(4))
def test_a_jpeg_that_lacks_only_its_end_is_whole(progressive: bool, quality: int, kind: int) -> None:
    data = encode(pattern(kind, 0, 128), "JPEG", quality=quality, progressive=progressive)
    whole = decode_image(data).pixels
    assert data.endswith(b"\xff\xd9")
    assert np.array_equal(decode_image(data[:-2]).pixels, whole)
    assert np.array_equal(decode_image(data[:-1]).pixels, whole)
    for cut in (8, 100, 1000):
        with pytest.raises(ImageError) as caught:
            decode_image(data[: -2 - cut])
        assert caught.value.reason == "IMAGE_TRUNCATED"


def test_other_formats_without_their_end_are_whole() -> None:
    for format_, cut in (("PNG", 12), ("GIF", 1)):
        data = encode(pattern(1, 0, 64), format_)
        assert np.array_equal(decode_image(data[:-cut]).pixels, decode_image(data).pixels)


# Sizes


def test_jpegs_are_counted_as_they_are_decoded() -> None:
    data = encode(gradient(4000, 3000), "JPEG", quality=80)
    limits = DecodeLimits(max_pixels=3_000_000, draft_side=512)
    decoded = decode_image(data, limits)
    assert (decoded.width, decoded.height, decoded.pixels.shape[:2]) == (4000, 3000, (750, 1000))
    for refused in (DecodeLimits(max_pixels=3_000_000, draft_side=None), DecodeLimits(max_pixels=2_999_999)):
        with pytest.raises(ImageError, match="4,000 x 3,000") as caught:
            decode_image(data, refused)
        assert caught.value.reason == "IMAGE_TOO_MANY_PIXELS"


def test_progressive_jpegs_are_held_whole_and_so_counted() -> None:
    data = encode(gradient(4000, 3000), "JPEG", quality=80, progressive=True)
    with pytest.raises(ImageError) as caught:
        decode_image(data, DecodeLimits(max_pixels=11_999_999))
    assert caught.value.reason == "IMAGE_TOO_MANY_PIXELS"
    assert decode_image(data, DecodeLimits(max_pixels=12_000_000)).pixels.shape == (750, 1000, 3)


def test_a_limit_above_pillows_own_is_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for format_ in ("JPEG", "PNG", "TIFF", "BMP", "WEBP"):
        assert decode_image(encode(gradient(), format_)).pixels.shape == (32, 48, 3)
