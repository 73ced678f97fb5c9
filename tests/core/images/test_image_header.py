"""What headers tell: sizes of all formats, and what decoding would cost."""

from __future__ import annotations

import io

import hostile_images
import pytest
from PIL import Image

from cbir.core.errors import ImageError
from cbir.core.images.image_header import MAX_SCANS, MAX_SEGMENTS, read_header


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\0\0" + bytes(60_000)}),
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0"}),
        ("AVIF", {}),
    ],
)
def test_every_format_tells_its_size(name: str, options: dict[str, object]) -> None:
    out = io.BytesIO()
    Image.new("RGB", (123, 45), (200, 30, 60)).save(out, name, **options)
    for brief in (False, True):
        header = read_header(out.getvalue(), brief=brief)
        assert (header.format, header.width, header.height) == (name, 123, 45)
        assert 0 < header.seconds < 0.01
        assert header.memory == 123 * 45 * 12


def test_cut_headers_and_other_bytes_are_no_error() -> None:
    for data in (
        b"",
        b"no picture",
        b"\xff",
        b"\xff\xd8",
        b"\xff\xd8\xff\xc2\x00",
        b"\x89PNG\r\n\x1a\n",
        b"BM",
        b"GIF89a",
    ):
        header = read_header(data)
        assert (header.width, header.height) == (0, 0)
    whole = hostile_images.jpeg()
    for end in range(0, len(whole), 97):
        read_header(whole[:end])


def test_scans_and_segments_of_a_jpeg_are_counted_up_to_a_limit() -> None:
    usual = hostile_images.jpeg(progressive=True)
    read_header(usual)
    read_header(hostile_images.many_scans(MAX_SCANS - 10, 64, 48))
    with pytest.raises(ImageError, match="scans") as caught:
        read_header(hostile_images.many_scans(MAX_SCANS, 64, 48))
    assert caught.value.reason == "IMAGE_TOO_COSTLY"
    read_header(hostile_images.many_segments(8 * (MAX_SEGMENTS - 10)))
    with pytest.raises(ImageError, match="segments") as caught:
        read_header(hostile_images.many_segments(8 * (MAX_SEGMENTS + 1)))
    assert caught.value.reason == "IMAGE_TOO_COSTLY"


def test_what_follows_the_picture_is_not_counted() -> None:
    """Phones append a film, in which anything may look like a marker."""
    read_header(hostile_images.jpeg() + b"\xff\xda\0\x02" * 10_000)


def test_a_brief_look_goes_no_further_than_the_picture() -> None:
    hostile = hostile_images.many_scans(1000, 64, 48)
    header = read_header(hostile, brief=True)
    assert (header.format, header.width, header.height) == ("JPEG", 64, 48)
    read_header(hostile_images.many_segments(8 * (MAX_SEGMENTS + 1)), brief=True)


def test_a_photo_that_is_decoded_at_a_reduced_scale_costs_less() -> None:
    data = hostile_images.jpeg(1100, 1100)
    whole, reduced = read_header(data), read_header(data, 512)
    assert reduced.seconds < whole.seconds
    assert reduced.memory == whole.memory // 4
