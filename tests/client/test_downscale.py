"""Large images are made smaller before they are sent, to what the server would make of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cbir.client import Box, InvalidQuery
from cbir.client._downscale import downscaled
from cbir.core.images import DecodeLimits, decode_image

#: Those of a server whose models need so many pixels.
LIMITS = DecodeLimits(draft_side=512)


def picture(width: int, height: int) -> Image.Image:
    """Smooth shapes with grain, like a photo: neither trivial to compress nor hopeless."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    grain = np.random.default_rng(0).normal(0, 6, (height, width, 1))
    waves = np.stack([np.sin(x / 90), np.cos(y / 70), np.sin((x + y) / 120)], axis=2)
    return Image.fromarray(np.clip(128 + 90 * waves + grain, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return picture(2200, 1650)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_what_is_sent_looks_the_same_to_the_server(photo: Image.Image, form: str) -> None:
    data = encoded(photo, form, quality=95)
    smaller, ratio = downscaled(data, 512) or (b"", None)
    assert len(smaller) < len(data)
    own, theirs = decode_image(data, LIMITS), decode_image(smaller, LIMITS)
    assert min(theirs.pixels.shape[:2]) >= 512
    assert ratio == pytest.approx((own.width / theirs.width, own.height / theirs.height))
    # Both at the side of a model's input: they differ by little more than rounding.
    sides = [
        np.asarray(Image.fromarray(i.pixels).resize((224, 224), Image.Resampling.BOX), float) for i in (own, theirs)
    ]
    assert np.abs(sides[0] - sides[1]).mean() < 1.0


def test_a_jpeg_is_decoded_at_the_scale_at_which_the_server_decodes_it(photo: Image.Image) -> None:
    data = encoded(photo, "JPEG", quality=92)
    smaller, _ = downscaled(data, 512) or (b"", None)
    own, theirs = decode_image(data, LIMITS), decode_image(smaller, LIMITS)
    assert own.pixels.shape == (825, 1100, 3)
    assert np.array_equal(own.pixels, theirs.pixels)


def test_photos_that_lie_on_their_side_are_sent_upright(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    smaller, ratio = downscaled(encoded(photo, "JPEG", exif=exif), 512) or (b"", None)
    with Image.open(io.BytesIO(smaller)) as sent:
        assert sent.size == (825, 1100)
        assert sent.getexif().get(0x0112, 1) == 1
    assert ratio == pytest.approx((2.0, 2.0))


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.effect_noise((1000, 1000), 60), "PNG"),
        encoded(Image.new("I;16", (2000, 1500), 700), "PNG"),
        encoded(Image.new("CMYK", (2000, 1500)), "JPEG"),
        encoded(picture(1500, 1200), "JPEG")[:2000],
        b"no image at all" * 20_000,
    ],
    ids=["too small to pay", "deep grey", "colours of print", "cut short", "no image"],
)
def test_what_the_server_knows_better_is_left_to_it(data: bytes) -> None:
    assert downscaled(data, 512) is None


@pytest.mark.parametrize("given_as", ["bytes", "path", "file", "pil", "array"])
def test_the_client_asks_once_and_sends_less(
    server: Any, make_client: Any, photo: Image.Image, tmp_path: Path, given_as: str
) -> None:
    server.query_side = 512
    data = encoded(photo, "JPEG", quality=92)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)

    def query() -> Any:
        return {"bytes": data, "path": path, "file": io.BytesIO(data), "pil": photo, "array": np.asarray(photo)}[
            given_as
        ]

    with make_client(server.target) as client:
        result = client.search(query())
        answers = dict(client.search_stream([("a", query()), ("b", query())]))
    sent = [request.query.image for request in server.requests[:1]]
    sent += [request.request.query.image for request in server.requests[1:]]
    # What is no JPEG is reduced by powers of two, too.
    assert [Image.open(io.BytesIO(image)).size for image in sent] == [(1100, 825)] * 3
    assert server.described == 1
    # The server cropped (2, 3, 30, 20) of what it was sent; in the photo that is so many times as much.
    assert result.crop == answers["a"].crop == answers["b"].crop == Box(4, 6, 60, 40)


def test_small_images_are_sent_as_they_are_and_nobody_is_asked(server: Any, any_client: Any) -> None:
    server.query_side = 512
    any_client.search(server.make_png())
    assert server.requests[0].query.image == server.make_png()
    assert server.described == 0


@pytest.mark.parametrize("side", [0, None])
def test_without_word_of_the_server_or_if_unwanted_images_are_sent_as_they_are(
    server: Any, make_client: Any, photo: Image.Image, side: int | None
) -> None:
    server.query_side = 512 if side is None else side
    data = encoded(photo, "JPEG")
    with make_client(server.target, downscale=side is not None) as client:
        client.search(data)
    assert server.requests[0].query.image == data


def test_arrays_of_all_kinds_are_images(server: Any, any_client: Any) -> None:
    grey = np.arange(12 * 8, dtype=np.uint8).reshape(8, 12)
    for array in (grey, np.stack([grey] * 3, axis=2), grey[:, :, None], grey > 40, np.stack([grey] * 4, axis=2)):
        any_client.search(array)
    sent = [Image.open(io.BytesIO(request.query.image)) for request in server.requests]
    assert [image.size for image in sent] == [(12, 8)] * 5
    assert [image.mode for image in sent] == ["L", "RGB", "L", "L", "RGBA"]
    assert np.array_equal(np.asarray(sent[0]), grey)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4), np.float32), r"array.astype\('uint8'\)"),
        (np.zeros(16, np.uint8), r"shape \(16,\) is no image"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\) is no image"),
        (np.zeros((0, 4), np.uint8), "is no image"),
    ],
)
def test_arrays_that_are_no_images_are_told_so(any_client: Any, array: Any, words: str) -> None:
    with pytest.raises(InvalidQuery, match=words):
        any_client.search(array)


def test_open_files_are_read(server: Any, any_client: Any, tmp_path: Path) -> None:
    path = tmp_path / "query.png"
    path.write_bytes(server.make_png())
    with path.open("rb") as file:
        any_client.search(file)
    assert server.requests[0].query.image == server.make_png()
    with path.open(encoding="latin-1") as text, pytest.raises(InvalidQuery, match="mode 'rb'"):
        any_client.search(text)
    with pytest.raises(InvalidQuery, match="open it again"):
        any_client.search(file)
