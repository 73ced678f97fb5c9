"""What is sent for an image."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from cbir.client._errors import InvalidQuery, TooLarge
from cbir.client._image_source import image_bytes


def decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def gradient(size: tuple[int, int]) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert("RGB")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_of_8_bits_is_sent_without_loss(mode: str) -> None:
    image = Image.new("L", (20, 10), 200).convert(mode)
    sent = decode(image_bytes(image))
    assert (sent.format, sent.size) == ("PNG", (20, 10))
    assert sent.convert("RGB").getpixel((3, 3)) == image.convert("RGB").getpixel((3, 3))


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
@pytest.mark.parametrize("side", [20, 1100])
def test_deep_greys_stay_deep(mode: str, side: int) -> None:
    sent = decode(image_bytes(Image.new("I", (side, side), 40_000).convert(mode)))
    assert (sent.format, sent.getpixel((3, 3))) == ("PNG", 40_000)


def test_a_mode_without_a_range_is_refused() -> None:
    with pytest.raises(InvalidQuery, match="convert it to 'L' or 'RGB'"):
        image_bytes(Image.new("F", (20, 10)))


def test_a_damaged_pil_image_is_named() -> None:
    with pytest.raises(InvalidQuery, match=r"mode 'RGB' and size \(600, 400\) cannot be written") as caught:
        image_bytes(Image.open(io.BytesIO(rotated_jpeg((600, 400))[:900])))
    assert caught.value.reason == "IMAGE_CORRUPT"


def test_large_pil_images_go_as_jpeg_of_high_quality() -> None:
    image = gradient((1200, 1000))
    data = image_bytes(image)
    sent = decode(data)
    assert (sent.format, sent.size) == ("JPEG", (1200, 1000))
    assert len(data) < 1200 * 1000 / 4
    differences = [abs(a - b) for a, b in zip(sent.tobytes()[::997], image.tobytes()[::997], strict=True)]
    assert max(differences) <= 3


def test_transparency_of_large_images_is_laid_on_white() -> None:
    image = Image.new("RGBA", (1200, 1000), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 600, 1000))
    sent = decode(image_bytes(image))
    assert sent.mode == "RGB"
    assert all(abs(a - b) <= 3 for a, b in zip(sent.getpixel((1100, 500)), (255, 255, 255), strict=True))  # type: ignore[arg-type]
    assert all(abs(a - b) <= 3 for a, b in zip(sent.getpixel((100, 500)), (0, 0, 255), strict=True))  # type: ignore[arg-type]


def rotated_jpeg(size: tuple[int, int]) -> bytes:
    """A JPEG that cameras call upright when turned by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    gradient(size).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def test_opened_files_are_sent_upright() -> None:
    sent = decode(image_bytes(Image.open(io.BytesIO(rotated_jpeg((60, 40))))))
    assert sent.size == (40, 60)
    assert sent.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("given_as", ["bytes", "path", "pil"])
def test_shrinking_when_asked(given_as: str, tmp_path: Path) -> None:
    data = rotated_jpeg((600, 400))
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    source = {"bytes": data, "path": path, "pil": Image.open(io.BytesIO(data))}[given_as]
    assert decode(image_bytes(source, max_side=120)).size == (80, 120)


def test_what_is_small_enough_or_no_image_goes_untouched(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    for data in (rotated_jpeg((60, 40)), b"no image at all"):
        path.write_bytes(data)
        assert image_bytes(data, max_side=60) == image_bytes(path, max_side=60) == data


def test_a_file_that_cannot_be_shrunk_is_named() -> None:
    with pytest.raises(InvalidQuery, match=r"truncated|cannot be"):
        image_bytes(rotated_jpeg((600, 400))[:900], max_side=100)


def test_shrinking_lets_an_oversized_photo_through(tmp_path: Path) -> None:
    path = tmp_path / "noise.png"
    Image.effect_noise((400, 300), 90).save(path)
    with pytest.raises(TooLarge, match="max_side="):
        image_bytes(path, max_bytes=20_000)
    assert decode(image_bytes(path, max_bytes=20_000, max_side=100)).size == (100, 75)


# Metadata never costs a query


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block in which the picture is to be turned by 90 degrees, beside broken entries."""
    import struct

    whole = [(0x0112, 3, 1, b"\6\0\0\0"), *entries]
    packed = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in whole)
    return b"II*\0" + struct.pack("<IH", 8, len(whole)) + packed + bytes(4)


BROKEN = {
    "XResolution of type ASCII": exif_block((0x011A, 2, 3, b"72\0\0"), (0x0128, 3, 1, b"\2\0\0\0")),
    "XResolution beyond the end": exif_block((0x011A, 10, 1, b"\xf0\xff\0\0")),
    "a type that is none": exif_block((0x010E, 99, 1, b"abcd")),
    "a directory that is its own": exif_block((0x8769, 4, 1, b"\x08\0\0\0")),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("given_as", ["bytes", "path", "pil"])
@pytest.mark.filterwarnings("ignore:Truncated File Read")  # where the test itself opens the image
def test_broken_metadata_costs_neither_the_query_nor_its_orientation(
    what: str, format_: str, given_as: str, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    gradient((600, 400)).save(buffer, format_, exif=b"Exif\0\0" + BROKEN[what])
    data = buffer.getvalue()
    path = tmp_path / "photo"
    path.write_bytes(data)
    source = {"bytes": data, "path": path, "pil": Image.open(io.BytesIO(data))}[given_as]
    sent = decode(image_bytes(source, max_side=120))
    assert sent.size == (80, 120)
    assert sent.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("exif", [b"", b"no exif", b"II*\0\xff\xff\xff\xff", b"MM"])
def test_metadata_that_is_none_costs_no_query(exif: bytes) -> None:
    buffer = io.BytesIO()
    gradient((600, 400)).save(buffer, "PNG", exif=exif)
    assert decode(image_bytes(Image.open(io.BytesIO(buffer.getvalue())), max_side=120)).size == (120, 80)
    assert decode(image_bytes(buffer.getvalue(), max_side=120)).size == (120, 80)


def test_what_this_pillow_cannot_open_is_left_to_the_server() -> None:
    buffer = io.BytesIO()
    gradient((600, 400)).save(buffer, "PNG")
    plain = buffer.getvalue()
    # A chunk of metadata whose checksum is wrong: Pillow refuses the file, the server reads past it.
    broken = plain[:33] + b"\0\0\0\4eXIfII*\0\1\2\3\4" + plain[33:]
    assert image_bytes(broken, max_side=120) == broken


def test_large_pil_images_keep_their_colour_profile() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for size in ((40, 30), (1200, 1000)):
        image = gradient(size)
        image.info["icc_profile"] = profile
        assert decode(image_bytes(image)).info["icc_profile"] == profile


def test_xmp_turns_a_picture_no_more_once_it_was_turned() -> None:
    image = gradient((1200, 1000))
    image.info["xmp"] = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    sent = image_bytes(image)
    assert decode(sent).size == (1000, 1200)
    assert b"tiff:Orientation" not in sent
