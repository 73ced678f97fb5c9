"""AVIF, HEIC and JPEG XL: files of boxes, whose metadata are boxes and items of their own."""

from __future__ import annotations

import re

from cbir.core.images.containers.bare_file import BareFile, too_many_parts

__all__ = ["bare_items", "bare_jpeg_xl", "brands", "jpeg_xl_size"]

_MOST_BOXES = 10_000
#: An item of a HEIF file by its entry in the table of items: the box, its version, an id, and the item's type.
_METADATA_ITEM = re.compile(rb"(infe[\x02\x03]\0\0.(?:..|....)\0\0)(?:Exif|mime)", re.DOTALL)
_JPEG_XL_PICTURE = (b"JXL ", b"ftyp", b"jxll", b"jxlc", b"jxlp")


def brands(data: bytes) -> frozenset[bytes]:
    """Return the brands of a file that begins with a ``ftyp`` box; none where it does not."""
    if data[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(data[:4], "big"), 1024, len(data))
    return frozenset((data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))))


def bare_items(data: bytes) -> BareFile:
    """Hide the EXIF and XMP items of an AVIF or HEIC file, where the picture's own box says how it is turned."""
    return BareFile(_METADATA_ITEM.sub(rb"\1skip", data))


def bare_jpeg_xl(data: bytes) -> BareFile:
    """Leave all boxes out but those of the picture, which says itself how it is turned.

    Raises:
        ImageError: ``IMAGE_CORRUPT``: there are absurdly many boxes.
    """
    if data[:2] == b"\xff\x0a":
        return BareFile(data)
    kept: list[bytes] = []
    for kind, start, end in _boxes(data):
        if kind in _JPEG_XL_PICTURE:
            kept.append(data[start:end])
    return BareFile(b"".join(kept))


def jpeg_xl_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height as the code stream of a JPEG XL file tells them, ``None`` where it is cut.

    Its decoder tells them only after it has decoded the picture.  Source: ISO/IEC 18181-1, size header.
    """
    stream = _codestream(data)
    if stream[:2] != b"\xff\x0a" or len(stream) < 12:  # no picture is that short
        return None
    bits = _Bits(stream[2:])
    small = bits.take(1)
    height = 8 * (bits.take(5) + 1) if small else 1 + bits.take((9, 13, 18, 30)[bits.take(2)])
    ratio = bits.take(3)
    if ratio == 0:
        width = 8 * (bits.take(5) + 1) if small else 1 + bits.take((9, 13, 18, 30)[bits.take(2)])
    else:
        above, below = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
        width = height * above // below
    return width, height


class _Bits:
    """Bits of a JPEG XL code stream: the lowest of a byte first."""

    def __init__(self, data: bytes) -> None:
        self._rest = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        value = self._rest & ((1 << count) - 1)
        self._rest >>= count
        return value


def _codestream(data: bytes, most: int = 64) -> bytes:
    """Return the first bytes of the code stream of a JPEG XL file."""
    if data[:2] == b"\xff\x0a":
        return data[:most]
    found = b""
    for kind, start, end in _boxes(data):
        if kind in (b"jxlc", b"jxlp"):
            found += data[start + (8 if kind == b"jxlc" else 12) : min(end, start + 12 + most)]
        if len(found) >= most:
            break
    return found[:most]


def _boxes(data: bytes) -> list[tuple[bytes, int, int]]:
    """Kind, start and end of each box of the top level; the last may reach to the end of the file."""
    boxes: list[tuple[bytes, int, int]] = []
    at = 0
    while at + 8 <= len(data):
        if len(boxes) == _MOST_BOXES:
            raise too_many_parts("JXL", _MOST_BOXES)
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        end = at + size if size else len(data)
        if end < at + 8:
            break
        boxes.append((data[at + 4 : at + 8], at, end))
        at = end
    return boxes
