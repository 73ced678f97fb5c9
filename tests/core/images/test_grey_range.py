"""Deep greys: the same picture at every depth and in every convention comes out the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import encode
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from cbir.core.images.decode import decode_image
from cbir.core.images.grey_range import NO_DATA, eight_bits

#: A ramp with all 256 greys, a few times.
RAMP = np.tile(np.arange(256, dtype=np.uint8), (8, 1))


def tiff(values: NDArray[np.generic], no_data: str | None = None) -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if no_data is not None:
        tags[42113] = no_data
    return encode(Image.fromarray(values), "TIFF", tiffinfo=tags)


def error(data: bytes) -> float:
    decoded = decode_image(data).pixels
    assert np.array_equal(decoded[..., 0], decoded[..., 1])
    return float(np.abs(decoded[..., 0].astype(int) - RAMP).max())


@pytest.mark.parametrize(
    "values",
    [
        RAMP.astype(np.float32),
        RAMP.astype(np.float32) / 255,
        RAMP.astype(np.float32) * 257,
        RAMP.astype(np.int32),
        RAMP.astype(np.int32) * 257,
        RAMP.astype(np.int32) * 2**23,
        RAMP.astype(np.uint16),
        RAMP.astype(np.uint16) * 4,
        RAMP.astype(np.uint16) * 16,
        RAMP.astype(np.uint16) * 64,
        RAMP.astype(np.uint16) * 257,
    ],
    ids=["float 255", "float 1", "float 16", "int32 8", "int32 16", "int32 31", "8 in 16", "10", "12", "14", "16"],
)
def test_every_depth_gives_the_same_greys(values: NDArray[np.generic]) -> None:
    # Four times 255 is 1020 of 1023, hence a grey of difference.
    assert error(tiff(values)) <= 1
    if values.dtype == np.uint16:
        assert error(encode(Image.fromarray(values), "PNG")) <= 1


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf, -9999.0, -32768.0, 3.4028235e38, -3.4028235e38, 1e20])
def test_one_value_that_means_nothing_does_not_darken_the_rest(scale: float, missing: float) -> None:
    values = RAMP.astype(np.float32) * np.float32(scale)
    values[3, 100] = missing
    decoded = decode_image(tiff(values)).pixels[..., 0]
    expected = RAMP.astype(int)
    expected[3, 100] = 255 if missing > 0 else 0
    assert np.abs(decoded - expected).max() <= 1


def test_what_the_file_calls_no_data_is_black() -> None:
    values = RAMP.astype(np.float32)
    values[:, 200:] = 777.0
    decoded = decode_image(tiff(values, "777")).pixels[..., 0]
    assert np.abs(decoded[:, :200].astype(int) - RAMP[:, :200]).max() <= 1
    assert (decoded[:, 200:] == 0).all()


def test_an_image_without_any_value_is_black() -> None:
    assert (decode_image(tiff(np.full((4, 4), np.nan, np.float32))).pixels == 0).all()
    assert (decode_image(tiff(np.zeros((4, 4), np.int32))).pixels == 0).all()


def test_signed_and_narrow_data_are_stretched() -> None:
    heights = np.linspace(1000, 1030, 64 * 64, dtype=np.float32).reshape(64, 64)
    assert (decode_image(tiff(heights)).pixels.min(), decode_image(tiff(heights)).pixels.max()) == (0, 255)
    signed = np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    assert (decode_image(tiff(signed)).pixels.min(), decode_image(tiff(signed)).pixels.max()) == (0, 255)


def test_a_mask_of_two_values_keeps_them() -> None:
    for white in (1, 255, 65535):
        mask = np.zeros((8, 8), np.uint16)
        mask[2:4] = white
        assert sorted(set(eight_bits(mask).ravel().tolist())) == [0, 255]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([np.uint16, np.int32, np.float32, np.float64]),
    st.lists(
        st.one_of(
            st.integers(-(2**31), 2**31 - 1), st.floats(allow_nan=True, allow_infinity=True), st.integers(0, 300)
        ),
        min_size=1,
        max_size=24,
    ),
    st.none() | st.floats(allow_nan=False),
)
def test_any_values_keep_their_order(kind: type, numbers: list[float], no_data: float | None) -> None:
    with np.errstate(all="ignore"):
        if kind in (np.float32, np.float64):
            values = np.array([numbers], kind)
        else:
            bounds = np.iinfo(kind)
            whole = [int(n) if np.isfinite(n) else 0 for n in numbers]
            values = np.array([[min(max(n, bounds.min), bounds.max) for n in whole]], kind)
    grey = eight_bits(values, no_data)
    assert grey.dtype == np.uint8
    assert grey.shape == values.shape
    known = ~np.isnan(values.astype(np.float64))
    if no_data is not None:
        with np.errstate(all="ignore"):
            known &= values != no_data
    order = np.argsort(values[known], kind="stable")
    assert (np.diff(grey[known][order].astype(int)) >= 0).all()
    finite = values[known & np.isfinite(values.astype(np.float64))]
    distinct = set(finite.ravel().tolist())
    if len(distinct) >= 2 and not distinct & NO_DATA:
        assert grey.max() > grey.min(), "two brightnesses never come out as one grey"


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_colours_of_twelve_bits_in_sixteen(format_: str) -> None:
    # Pillow writes no 16-bit colours, so OpenCV does.
    cv2 = pytest.importorskip("cv2")
    colours = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 40)], axis=2)
    for shift in (4, 6, 8):
        deep = colours.astype(np.uint16) << shift
        options = [cv2.IMWRITE_TIFF_COMPRESSION, 1] if format_ == "TIFF" else []
        done, data = cv2.imencode(f".{format_.lower()}", deep[..., ::-1], options)
        assert done
        decoded = decode_image(data.tobytes()).pixels
        assert np.abs(decoded.astype(int) - colours).max() <= 1
