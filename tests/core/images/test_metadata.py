"""Metadata never costs an image: of all that a file says about itself the orientation is read, and the rest is not."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import encode, gradient
from numpy.typing import NDArray
from PIL import Image

from cbir.core.errors import ImageError
from cbir.core.images.decode import decode_image
from cbir.core.images.image_header import read_header
from cbir.core.images.orientation import exif_orientation

UPRIGHT = np.asarray(gradient()).astype(int)
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")

#: Stored pixels from which applying the tag gives the gradient back.
STORED = {
    1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90],
    7: [Image.Transpose.TRANSVERSE], 8: [Image.Transpose.ROTATE_270],
}  # fmt: skip


def stored(orientation: int) -> Image.Image:
    image = gradient()
    for step in STORED[orientation]:
        image = image.transpose(step)
    return image


def block(entries: list[tuple[int, int, int, bytes]], order: str = "<", tail: bytes = b"") -> bytes:
    """An EXIF block of entries (tag, type, count, four bytes of value or offset), as broken as they are."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    return head + b"".join(struct.pack(order + "HHI", *e[:3]) + e[3] for e in entries) + bytes(4) + tail


def oriented(orientation: int, order: str = "<") -> tuple[int, int, int, bytes]:
    return 0x0112, 3, 1, struct.pack(order + "HH", orientation, 0)


def with_exif(image: Image.Image, format_: str, exif: bytes) -> bytes:
    """The file with this EXIF block, put in by hand: Pillow would repair some of it."""
    plain = encode(image, format_, **({"quality": 95} if format_ in ("JPEG", "WEBP") else {}))
    if format_ == "JPEG":
        body = b"Exif\0\0" + exif
        return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]
    if format_ == "PNG":
        chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
        return plain[:33] + chunk + plain[33:]
    if format_ == "WEBP":
        extended = struct.pack("<4sII", b"VP8X", 10, 0x08) + (image.width - 1).to_bytes(3, "little")
        extended += (image.height - 1).to_bytes(3, "little")
        chunks = extended + plain[12:] + struct.pack("<4sI", b"EXIF", len(exif)) + exif + bytes(len(exif) % 2)
        return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks
    return with_entries(plain, exif)


def with_entries(plain: bytes, exif: bytes) -> bytes:
    """A TIFF with the entries of the EXIF block among its own; their offsets lead anywhere."""
    (start,) = struct.unpack_from("<I", plain, 4)
    (count,) = struct.unpack_from("<H", plain, start)
    own = {plain[at : at + 2]: plain[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)}
    order = "<" if exif[:2] == b"II" else ">"
    for at in range(10, len(exif) - 11, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", exif, at)
        entry = struct.pack("<HHI", tag, kind, number)
        value = exif[at + 8 : at + 12] if order == "<" else exif[at + 8 : at + 10][::-1] + b"\0\0"
        own.setdefault(entry[:2], entry + value)
    entries = sorted(own.values(), key=lambda entry: entry[1] << 8 | entry[0])
    at = len(plain) + len(plain) % 2
    return (
        plain[:4] + struct.pack("<I", at) + plain[8:].ljust(at - 8, b"\0")
        + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    )  # fmt: skip


def error(data: bytes) -> float:
    decoded = decode_image(data)
    assert decoded.pixels.shape == UPRIGHT.shape
    return float(np.abs(decoded.pixels - UPRIGHT).mean())


#: A directory in which the entry that says how the picture is turned stands beside one that is broken.
BROKEN: dict[str, Callable[[int], bytes]] = {
    "XResolution of type ASCII": lambda o: block([oriented(o), (0x011A, 2, 3, b"72\0\0"), (0x0128, 3, 1, b"\2\0\0\0")]),
    "XResolution -1/0": lambda o: block(
        [oriented(o), (0x011A, 10, 1, struct.pack("<I", 60))], tail=bytes(22) + struct.pack("<ii", -1, 0)
    ),
    "text in centimetres": lambda o: block([oriented(o), (0x011A, 2, 4, b"12c\0"), (0x0128, 3, 1, b"\3\0\0\0")]),
    "an offset beyond the end": lambda o: block([oriented(o), (0x010F, 2, 60, b"\xff\xff\xff\x7f")]),
    "a type that is none": lambda o: block([(0x010E, 99, 1, b"abcd"), oriented(o)]),
    "a count beyond all memory": lambda o: block([oriented(o), (0x010E, 5, 2**32 - 1, b"\x08\0\0\0")]),
    "a directory that is its own sub-directory": lambda o: block([oriented(o), (0x8769, 4, 1, b"\x08\0\0\0")]),
    "a GPS directory outside": lambda o: block([oriented(o), (0x8825, 4, 1, b"\xf0\xff\xff\xff")]),
    "nothing after the entries": lambda o: block([oriented(o)])[:-4],
    "big-endian": lambda o: block([oriented(o, ">")], ">"),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("format_", FORMATS)
def test_a_broken_entry_costs_neither_the_image_nor_its_orientation(what: str, format_: str) -> None:
    for orientation in (1, 3, 6):
        assert error(with_exif(stored(orientation), format_, BROKEN[what](orientation))) < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", [(1, "B"), (3, "H"), (4, "I"), (8, "h"), (9, "i")])
def test_an_orientation_of_any_whole_type_is_read(orientation: int, kind: tuple[int, str]) -> None:
    for order in "<>":
        value = struct.pack(order + kind[1], orientation).ljust(4, b"\0")
        assert exif_orientation(block([(0x0112, kind[0], 1, value)], order)) == orientation


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(value: int) -> None:
    assert exif_orientation(block([oriented(value)])) is None
    assert error(with_exif(gradient(), "JPEG", block([oriented(value)]))) < 8


@pytest.mark.parametrize(
    "broken", [b"", b"II", b"no tiff at all", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"]
)
@pytest.mark.parametrize("format_", FORMATS[:3])
def test_a_block_that_is_none_costs_no_image(broken: bytes, format_: str) -> None:
    assert error(with_exif(gradient(), format_, broken)) < 8


@pytest.mark.parametrize("format_", ["AVIF"])
def test_boxes_turn_a_picture_whatever_its_exif_says(format_: str) -> None:
    data = encode(
        stored(6), format_, quality=95, exif=block([oriented(6), (0x010F, 2, 6, b"\x26\0\0\0")], tail=b"maker\0")
    )
    assert error(data) < 8
    at = data.rindex(b"II*\0") if b"II*\0" in data else data.rindex(b"MM\0*")
    assert error(data[:at] + b"XXXX" + data[at + 4 :]) < 8


def png_chunk(kind: bytes, body: bytes, checksum: int = 0) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum ^ zlib.crc32(kind + body))


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"eXIf", b"II*\0", 1),
        png_chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(2**25))),
        png_chunk(b"tEXt", b"comment\0" + bytes(2**21)) * 40,
        png_chunk(b"iTXt", b"broken"),
        png_chunk(b"iCCP", b"no name"),
        png_chunk(b"pHYs", b"\0"),
        png_chunk(b"acTL", b"\0"),
        png_chunk(b"fcTL", b""),
        png_chunk(b"tRNS", b""),
        png_chunk(b"qqQq", b"of a program that nobody knows"),
    ],
    ids=["checksum", "text bomb", "much text", "itxt", "iccp", "phys", "actl", "fctl", "trns", "unknown"],
)
def test_other_chunks_cost_no_png(chunk: bytes) -> None:
    plain = encode(gradient(), "PNG")
    assert error(plain[:33] + chunk + plain[33:]) == 0
    assert error(plain[:-12] + chunk + plain[-12:]) == 0


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize(
    "segment",
    [
        jpeg_segment(0xE0, b"JFIF"),
        jpeg_segment(0xE1, b"Exif\0\0"),
        jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
        jpeg_segment(0xE2, b"ICC_PROFILE\0"),
        jpeg_segment(0xE2, b"ICC_PROFILE\0\1\2half of a profile"),
        jpeg_segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff"),
        jpeg_segment(0xED, b"Photoshop 3.0\x008BIM"),
        jpeg_segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\2ab"),
        jpeg_segment(0xEE, b"Adobe"),
        jpeg_segment(0xFE, b"\xff\xfe\xfd a comment"),
        b"\xff\xe5\0\0",
        b"\xff\xff\xff",
    ],
)
def test_other_segments_cost_no_jpeg(segment: bytes) -> None:
    plain = encode(gradient(), "JPEG", quality=95)
    assert error(plain[:2] + segment + plain[2:]) < 8
    assert error(plain[:20] + segment + plain[20:]) < 8


def test_photos_with_a_second_picture_are_jpegs() -> None:
    both = io.BytesIO()
    gradient().save(both, "MPO", save_all=True, append_images=[gradient()], quality=95)
    decoded = decode_image(both.getvalue())
    assert (decoded.format, decoded.width, decoded.height) == ("JPEG", 48, 32)


def test_of_an_animation_the_first_picture_is_taken() -> None:
    frames = [gradient(), gradient().transpose(Image.Transpose.ROTATE_180)]
    for format_ in ("PNG", "WEBP", "GIF", "TIFF"):
        data = encode(frames[0], format_, save_all=True, append_images=frames[1:])
        assert error(data) < 8


@pytest.mark.parametrize("format_", FORMATS)
def test_xmp_tells_the_orientation_where_exif_does_not(format_: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    options: dict[str, object] = {"quality": 95} if format_ in ("JPEG", "WEBP") else {}
    if format_ == "PNG":
        data = encode(stored(6), "PNG")
        data = data[:33] + png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + data[33:]
    elif format_ == "TIFF":
        data = encode(stored(6), "TIFF", tiffinfo={700: xmp})
    else:
        data = encode(stored(6), format_, xmp=xmp, **options)
    assert error(data) < 8


entries = st.tuples(
    st.integers(0, 65535).filter(lambda tag: tag not in (0x0112, *range(254, 340), 347, *range(512, 540))),
    st.integers(0, 20),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=4, max_size=4),
)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(FORMATS), st.sampled_from(range(1, 9)), st.lists(entries, max_size=6), st.sampled_from("<>"),
    st.binary(max_size=40),
)  # fmt: skip
def test_any_damage_beside_the_orientation_changes_nothing(
    format_: str, orientation: int, others: list[tuple[int, int, int, bytes]], order: str, tail: bytes
) -> None:
    exif = block([*others, oriented(orientation, order)], order, tail)
    assert error(with_exif(stored(orientation), format_, exif)) < 8


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(FORMATS[:3]), st.binary(max_size=80))
def test_any_bytes_in_place_of_exif_cost_no_image(format_: str, exif: bytes) -> None:
    decoded: NDArray[np.uint8] = decode_image(with_exif(gradient(), format_, exif)).pixels
    assert sorted(decoded.shape) == [3, 32, 48]


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_any_damage_anywhere_gives_a_picture_or_a_reason(damage: str) -> None:
    rng = np.random.default_rng(5)
    for format_ in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"):
        whole = (
            with_exif(stored(6), format_, block([oriented(6)])) if format_ in FORMATS else encode(gradient(), format_)
        )
        for _ in range(40):
            data = bytearray(whole)
            if damage == "flip":
                for at in rng.integers(0, len(data), 3):
                    data[at] = rng.integers(0, 256)
            else:
                del data[rng.integers(0, len(data)) :]
            # Any other exception fails the test.
            with contextlib.suppress(ImageError):
                assert decode_image(bytes(data)).pixels.ndim == 3
            with contextlib.suppress(ImageError):
                read_header(bytes(data))
