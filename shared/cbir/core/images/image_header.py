"""What a file's header tells before anything is decoded: format, size, and about what decoding will cost.

Nothing here decides whether a file is good: that is the decoder's part.  A file that lies about itself is stopped by
the limits of the process that decodes it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from cbir.core.errors import ImageError
from cbir.core.images.containers.boxes import jpeg_xl_size

__all__ = ["MAX_SCANS", "MAX_SEGMENTS", "ImageHeader", "read_header"]

#: Most scans of a JPEG: each costs a pass over the whole picture.  Encoders write about ten in a progressive file.
MAX_SCANS = 64
#: Most segments of a JPEG besides scans: tables, colour profile, EXIF, depth maps.  Each costs interpreter time.
MAX_SEGMENTS = 4096
#: Most of them that a brief look passes over.
_BRIEFLY = 512

# Seconds of one core a megapixel, rounded up: they tell the cheap from the dear, and may be wrong by a factor of three.
_REDUCED, _BASELINE, _PROGRESSIVE, _EACH_SCAN, _OTHER = 0.008, 0.02, 0.02, 0.004, 0.06
_USUAL_SCANS = 10
# Bytes a pixel that are held at once: Pillow's picture, the array, and a step between two modes.
_BYTES_EACH = 12
#: What is assumed of a file whose header tells no size.
_UNKNOWN = (2000, 2000)


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an image file says.

    Attributes:
        format: As Pillow names it; empty where none is recognised.
        width: In pixels; 0 where the header does not tell.
        height: Likewise.
        seconds: About what decoding it takes of one core.
        memory: About the bytes that it needs meanwhile.
    """

    format: str
    width: int
    height: int
    seconds: float
    memory: int


def read_header(data: bytes, draft_side: int | None = None, *, brief: bool = False) -> ImageHeader:
    """Look at a file without decoding it, in microseconds, or some tenths of a millisecond a megabyte of JPEG.

    Args:
        draft_side: As in :class:`~cbir.core.images.DecodeLimits`.
        brief: Look no further than to where the picture begins, and take a progressive JPEG for an ordinary one: always
            microseconds, and never an error.

    Raises:
        ImageError: ``IMAGE_TOO_COSTLY``: a JPEG of more scans or segments than any encoder writes.
    """
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data, draft_side, brief)
    for start, name, measure in _FORMATS:
        if start.match(data):
            try:
                return _header(name, *measure(data))
            except (struct.error, IndexError):
                return _header(name, 0, 0)
    # It will be refused at once.
    return ImageHeader("", 0, 0, 0.0, 0)


def _header(name: str, width: int, height: int, seconds_each: float = _OTHER) -> ImageHeader:
    pixels = width * height or _UNKNOWN[0] * _UNKNOWN[1]
    return ImageHeader(name, width, height, seconds_each * pixels / 1e6, pixels * _BYTES_EACH)


#: The next marker that matters: neither stuffing nor a restart, which are part of a scan's own data.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_END, _SCAN = 0xD9, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE_FRAMES = frozenset((0xC2, 0xC6, 0xCA, 0xCE))


def _jpeg(data: bytes, draft_side: int | None, brief: bool) -> ImageHeader:
    place, width, height, scans, others, progressive = 2, 0, 0, 0, 0, False
    while found := _MARKER.search(data, place):
        place = found.end()
        marker = data[place - 1]
        if marker == _SCAN:
            scans += 1
        else:
            others += 1
        if marker == _END or (brief and (scans or others > _BRIEFLY)):
            break
        if scans > MAX_SCANS or others > MAX_SEGMENTS:
            raise ImageError(
                f"the JPEG file has more than {MAX_SCANS} scans or {MAX_SEGMENTS:,} segments: export it again, without "
                "metadata",
                reason="IMAGE_TOO_COSTLY",
                format="JPEG",
            )
        if marker in _FRAMES and len(data) >= place + 7:
            height, width = struct.unpack_from(">HH", data, place + 3)
            progressive = marker in _PROGRESSIVE_FRAMES
        place += max(2, int.from_bytes(data[place : place + 2], "big"))
    if progressive:
        return _header("JPEG", width, height, _PROGRESSIVE + _EACH_SCAN * (_USUAL_SCANS if brief else scans))
    if not draft_side or min(width, height) < 2 * draft_side:
        return _header("JPEG", width, height, _BASELINE * max(1, scans))
    # No more than a quarter of the pixels are ever made.
    whole = _header("JPEG", width, height, _REDUCED * max(1, scans))
    return ImageHeader(whole.format, width, height, whole.seconds, whole.memory // 4)


def _png(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _bmp(data: bytes) -> tuple[int, int]:
    if struct.unpack_from("<I", data, 14)[0] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff(data: bytes) -> tuple[int, int]:
    """The first directory's ImageWidth and ImageLength, classic TIFF only."""
    order = "<" if data[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(f"{order}I", data, 4)
    (entries,) = struct.unpack_from(f"{order}H", data, directory)
    size = {256: 0, 257: 0}
    for entry in range(min(entries, 64)):
        tag, kind = struct.unpack_from(f"{order}HH", data, directory + 2 + 12 * entry)
        if tag in size:
            size[tag] = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, directory + 10 + 12 * entry)[0]
    return size[256], size[257]


def _avif(data: bytes) -> tuple[int, int]:
    """The largest ``ispe`` property: images, tiles and thumbnails have one each."""
    sizes, place = [(0, 0)], 0
    while len(sizes) < 64 and (place := data.find(b"ispe", place, 2**16) + 1):
        if len(data) >= place + 15:
            sizes.append(struct.unpack_from(">II", data, place + 7))
    return max(sizes, key=lambda size: size[0] * size[1])


_FORMATS = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG", _png),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP", _webp),
    (re.compile(rb"GIF8[79]a"), "GIF", _gif),
    (re.compile(rb"BM"), "BMP", _bmp),
    (re.compile(rb"II\*\0|MM\0\*"), "TIFF", _tiff),
    # HEIC is built alike.
    (re.compile(rb"....ftyp", re.DOTALL), "AVIF", _avif),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JXL", lambda data: jpeg_xl_size(data) or (0, 0)),
)
