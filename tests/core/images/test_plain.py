"""What is decoded the quick way gives the pixels that Pillow gives, and all else is left to Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from icc_profiles import profile
from images import encode, gradient, pattern
from PIL import Image, ImageCms

from cbir.core.errors import ImageError
from cbir.core.images import DecodeLimits, decode, decode_image
from cbir.core.images.halving import halved, reduced, scale_for
from cbir.core.images.opening import strip_metadata
from cbir.core.images.orientation import turn, turn_pixels
from cbir.core.images.plain import decode_plain

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PLAIN: dict[str, Callable[[Image.Image], bytes]] = {
    "baseline": lambda image: encode(image, "JPEG", quality=90),
    "all colours": lambda image: encode(image, "JPEG", quality=90, subsampling="4:4:4"),
    "half the colours": lambda image: encode(image, "JPEG", quality=70, subsampling="4:2:2"),
    "progressive": lambda image: encode(image, "JPEG", quality=80, progressive=True),
    "restarts": lambda image: encode(image, "JPEG", quality=80, restart_marker_blocks=3),
    "as it is in RGB": lambda image: encode(image, "JPEG", quality=90, keep_rgb=True),
    "greys": lambda image: encode(image.convert("L"), "JPEG", quality=90),
    "png": lambda image: encode(image, "PNG"),
    "webp": lambda image: encode(image, "WEBP", quality=80),
    "webp without loss": lambda image: encode(image, "WEBP", lossless=True),
    "webp with a profile": lambda image: encode(image, "WEBP", icc_profile=SRGB),
}
OTHER: dict[str, Callable[[Image.Image], bytes]] = {
    "inks": lambda image: encode(image.convert("CMYK"), "JPEG"),
    "greys with a profile": lambda image: encode(image.convert("L"), "JPEG", icc_profile=SRGB),
    "palette": lambda image: encode(image.quantize(16), "PNG"),
    "transparent png": lambda image: encode(image.convert("RGBA"), "PNG"),
    "a transparent colour": lambda image: encode(image, "PNG", transparency=(255, 0, 40)),
    "sixteen bits": lambda image: encode(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16)), "PNG"),
    "transparent webp": lambda image: encode(faded(image), "WEBP"),
    "transparent webp without loss": lambda image: encode(faded(image), "WEBP", lossless=True),
    "moving webp": lambda image: encode(image, "WEBP", save_all=True, append_images=[image.rotate(180)]),
    "gif": lambda image: encode(image, "GIF"),
}
WHOLE = DecodeLimits(draft_side=None)


def faded(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(100)
    return image


def with_pillow(data: bytes, side: int | None, monkeypatch: pytest.MonkeyPatch) -> np.ndarray | str:
    """What is decoded when nothing is taken for plain."""
    with monkeypatch.context() as patched:
        patched.setattr(decode, "decode_plain", lambda *_: None)
        return outcome(data, side)


def outcome(data: bytes, side: int | None) -> np.ndarray | str:
    try:
        return decode_image(data, DecodeLimits(draft_side=side)).pixels
    except ImageError as error:
        return error.reason


@pytest.mark.parametrize("size", [(64, 48), (101, 67), (7, 300)])
@pytest.mark.parametrize("side", [None, 24, 4])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_pictures_are_pillows(
    name: str, side: int | None, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = PLAIN[name](pattern(2, 1, 300).resize(size))
    kind, bare = strip_metadata(data, WHOLE)
    assert decode_plain(kind, bare, DecodeLimits(draft_side=side)) is not None
    assert np.array_equal(outcome(data, side), with_pillow(data, side, monkeypatch))
    if side is None and kind != "JPEG":
        # Not only what this project makes of it.
        assert np.array_equal(outcome(data, side), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("name", OTHER)
def test_what_is_not_plain_is_left_to_pillow(name: str) -> None:
    kind, bare = strip_metadata(OTHER[name](gradient()), WHOLE)
    assert decode_plain(kind, bare, WHOLE) is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [None, 24])
@pytest.mark.parametrize("kind", ["Display P3", None])
def test_turned_and_converted_they_are_pillows_too(
    orientation: int, side: int | None, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"icc_profile": profile(kind)} if kind else {}
    data = encode(pattern(3, 2, 96).resize((96, 64)), "JPEG", exif=exif, **options)
    assert np.array_equal(outcome(data, side), with_pillow(data, side, monkeypatch))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_arrays_turn_as_pictures_do(orientation: int) -> None:
    stored = pattern(1, 3, 40).resize((40, 25))
    assert np.array_equal(turn_pixels(np.asarray(stored), orientation), np.asarray(turn(stored, orientation)))


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_damage_makes_no_difference_between_the_ways(format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped byte, a cut, something put in between: the same picture, or the same refusal."""
    rng = np.random.default_rng(3)
    refused = 0
    for seed in range(60):
        options = {"progressive": seed % 3 == 0} if format_ == "JPEG" else {}
        data = bytearray(encode(pattern(seed % 4, seed, 40), format_, **options))
        place = int(rng.integers(12, len(data)))
        match seed % 4:
            case 0:
                data[place] ^= int(rng.integers(1, 256))
            case 1:
                del data[place:]
            case 2:
                data[place:place] = rng.bytes(int(rng.integers(1, 9)))
            case 3:
                del data[place : place + int(rng.integers(1, 9))]
        side = (None, 16)[seed % 2]
        here, there = outcome(bytes(data), side), with_pillow(bytes(data), side, monkeypatch)
        assert np.array_equal(here, there), seed
        refused += isinstance(here, str)
    assert refused
    # A PNG is checked by sums.
    assert refused < 60 or format_ == "PNG"


def test_limits_hold_as_they_do_for_pillow() -> None:
    data = encode(gradient(400, 300), "JPEG")
    kind, bare = strip_metadata(data, WHOLE)
    most = 100 * 75
    assert decode_plain(kind, bare, DecodeLimits(max_pixels=most, draft_side=75)) is None, "read over too much"
    assert decode_plain(kind, bare, DecodeLimits(max_pixels=200 * 150, draft_side=150)) is not None
    assert decode_plain(kind, bare, DecodeLimits(max_pixels=200 * 150 - 1, draft_side=150)) is None
    progressive = strip_metadata(encode(gradient(400, 300), "JPEG", progressive=True), WHOLE)
    assert decode_plain(*progressive, DecodeLimits(max_pixels=400 * 300 - 1, draft_side=75)) is None
    assert decode_plain(*progressive, DecodeLimits(max_pixels=400 * 300, draft_side=75)) is not None


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_large_pictures_of_all_formats_are_given_smaller(format_: str) -> None:
    """Their shorter side is as asked, or up to twice that, and the original's size is told."""
    image = gradient(170, 90)
    decoded = decode_image(encode(image, format_), DecodeLimits(draft_side=10))
    assert (decoded.width, decoded.height) == (170, 90)
    assert decoded.pixels.shape in {(11, 21, 3), (12, 22, 3)}
    assert not decoded.pixels.flags.writeable
    expected = np.asarray(image.resize(decoded.pixels.shape[1::-1], Image.Resampling.BOX))
    assert np.abs(decoded.pixels.astype(int) - expected).mean() < 12
    assert decode_image(encode(image, format_), WHOLE).pixels.shape == (90, 170, 3)


def test_halving_is_the_mean_of_four() -> None:
    pixels = np.array([[10, 20, 0, 4, 99], [30, 40, 4, 9, 99], [99, 99, 99, 99, 99]], np.uint8)
    assert halved(pixels).tolist() == [[25, 4]]
    colours = np.stack([pixels, pixels + 1, pixels + 2], axis=-1)
    assert halved(colours).tolist() == [[[25, 26, 27], [4, 5, 6]]]


@pytest.mark.parametrize(
    ("shorter", "side", "scale"),
    [(99, 100, 1), (199, 100, 1), (200, 100, 2), (399, 100, 2), (1700, 100, 16), (5, None, 1)],
)
def test_scales_leave_what_is_needed(shorter: int, side: int | None, scale: int) -> None:
    assert scale_for(shorter, side) == scale
    assert min(reduced(np.zeros((shorter, 3 * shorter, 3), np.uint8), side).shape[:2]) == shorter // scale


def test_models_of_larger_inputs_get_larger_pictures() -> None:
    limits = DecodeLimits(draft_side=384)
    assert limits.for_inputs([96, 240]).draft_side == 384
    assert limits.for_inputs([224, 518]).draft_side == 777
    assert limits.for_inputs([]).draft_side == 384
    assert DecodeLimits(draft_side=None).for_inputs([518]).draft_side is None
