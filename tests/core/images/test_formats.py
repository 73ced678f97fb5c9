"""HEIC and JPEG XL: read with the extra ``formats``, under the same limits; named where it is not installed."""

from __future__ import annotations

import contextlib
import importlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import encode, gradient, pattern
from PIL import Image

from cbir.core.errors import ImageError
from cbir.core.images import formats
from cbir.core.images.containers.boxes import jpeg_xl_size
from cbir.core.images.decode import DecodeLimits, decode_image
from cbir.core.images.formats import enable_extra_format, sniff_format
from cbir.core.images.image_header import read_header

EXTRA = ("HEIF", "JXL")


@pytest.fixture(autouse=True, scope="module")
def _encoders() -> None:
    for kind in EXTRA:
        enable_extra_format(kind)


def written(image: Image.Image, kind: str, **options: object) -> bytes:
    return encode(image, kind, **{"quality": 95, **options})


@pytest.mark.parametrize("kind", EXTRA)
def test_the_extra_formats_give_the_same_picture(kind: str) -> None:
    data = written(gradient(), kind)
    decoded = decode_image(data)
    assert (decoded.format, decoded.width, decoded.height) == (kind, 48, 32)
    assert np.abs(decoded.pixels.astype(int) - np.asarray(gradient())).mean() < 8
    header = read_header(data)
    # HEIC codes whole blocks and says what of them is the picture.
    assert (48, 32) <= (header.width, header.height) <= (64, 64)


def test_a_heic_is_turned_by_its_boxes_whatever_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = written(gradient().transpose(Image.Transpose.ROTATE_90), "HEIF", exif=exif.tobytes())
    assert b"irot" in data
    for one in (data, data.replace(b"MM\0*", b"XXXX")):
        decoded = decode_image(one)
        assert (decoded.width, decoded.height) == (48, 32)
        assert np.abs(decoded.pixels.astype(int) - np.asarray(gradient())).mean() < 8


def test_exif_in_a_jpeg_xl_turns_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = written(gradient(), "JXL", exif=exif.tobytes(), use_container=True)
    assert b"Exif" in data
    assert decode_image(data).pixels.shape == (32, 48, 3)


@pytest.mark.parametrize("kind", EXTRA)
def test_the_extra_formats_keep_the_limits(kind: str) -> None:
    data = written(gradient(), kind)
    for limits, reason in (
        (DecodeLimits(max_pixels=48 * 32 - 1), "IMAGE_TOO_MANY_PIXELS"),
        (DecodeLimits(max_bytes=len(data) - 1), "IMAGE_TOO_LARGE"),
    ):
        with pytest.raises(ImageError) as caught:
            decode_image(data, limits)
        assert caught.value.reason == reason


@pytest.mark.parametrize("kind", EXTRA)
def test_cut_and_damaged_files_are_refused_by_name(kind: str) -> None:
    whole = written(pattern(3, 1, 64), kind)
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        if rng.random() < 0.5:
            data[rng.integers(0, len(data))] ^= 0xFF
        else:
            del data[rng.integers(0, len(data)) :]
        try:
            decode_image(bytes(data))
        except ImageError as error:
            refused += error.reason.startswith("IMAGE_")
    assert refused > 10


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_size_of_a_jpeg_xl_is_known_before_it_is_decoded(width: int, height: int) -> None:
    # What a decoder makes of it: a flat picture of one colour has hundreds of bytes, whatever its size.
    if width * height > 400_000:
        width, height = min(width, 600), min(height, 600)
    buffer = io.BytesIO()
    Image.new("L", (width, height), 7).save(buffer, "JXL", effort=1)
    assert jpeg_xl_size(buffer.getvalue()) == (width, height)


@pytest.mark.parametrize(("kind", "name"), [("HEIF", "HEIC"), ("JXL", "JPEG XL")])
def test_without_the_extra_it_is_named(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(gradient(), kind)
    monkeypatch.setitem(formats._enabled, kind, False)
    with pytest.raises(ImageError, match=rf"the image is {name}, .*pip install 'ensemble-cbir\[formats\]'") as caught:
        decode_image(data)
    assert caught.value.reason == "IMAGE_FORMAT"


def test_a_package_that_is_not_there_is_no_error_until_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_enabled", {})
    real = importlib.import_module
    monkeypatch.setattr(
        importlib, "import_module", lambda name: _absent(name) if name.startswith("pillow_") else real(name)
    )
    with pytest.raises(ImageError, match="extra 'formats'"):
        decode_image(written(gradient(), "HEIF"))
    assert decode_image(encode(gradient(), "PNG")).format == "PNG"


def _absent(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@given(st.binary(max_size=64))
def test_any_first_bytes_are_a_format_or_none(start: bytes) -> None:
    assert sniff_format(start) in (None, *formats.FORMATS, *formats.EXTRA_FORMATS)
    with contextlib.suppress(ImageError):
        decode_image(start)
