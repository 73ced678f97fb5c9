"""JPEG: the segments before the first scan, and files that lack their last two bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from cbir.core.images.containers.bare_file import BareFile, too_many_parts
from cbir.core.images.orientation import exif_orientation, xmp_orientation

# What looks through arrays is imported where one is looked through: limits are known, and helps printed, without it.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["END", "OTHER_ENDS", "Frame", "bare_jpeg", "jpeg_frame", "without_end"]

END = b"\xff\xd9"
#: What may be read on after a cut file; unlike the zeros that the decoder itself reads there, it begins with ones.
OTHER_ENDS = (b"\xaa" * 1024, bytes(range(240, 0, -1)) * 4)

_MOST_SEGMENTS = 20_000
_EXIF, _XMP, _ICC = b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_SOI, _SOS, _COMMENT = 0xD8, 0xDA, 0xFE
_ALONE = frozenset((0x01, *range(0xD0, 0xDA)))
#: Zeros at the end of a file that are not its data but space that was laid out for it.
_PADDING = 16


#: Frames of Huffman codes that are decoded block by block: baseline, extended, progressive.
_FRAMES = (0xC0, 0xC1, 0xC2)
_PROGRESSIVE = 0xC2
_MOST_TABLES = 64
#: Frames of other kinds: without loss, in a hierarchy, with arithmetic codes.
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: What comes between a frame and its end: tables, restart intervals, scans.
_BEFORE_THE_END = frozenset((0xC4, 0xDA, 0xDB, 0xDD))


@dataclass(frozen=True, slots=True)
class Frame:
    """What the header of a JPEG's picture says.

    Attributes:
        width: In pixels.
        height: In pixels.
        components: 1: greys, 3: colours, 4: printing inks.
        progressive: It comes in several scans, each of the whole picture.
    """

    width: int
    height: int
    components: int
    progressive: bool


def jpeg_frame(data: bytes) -> Frame | None:
    """Return the frame of a bare JPEG; ``None`` where it is unusual, damaged as far as markers tell, or has no end."""
    at, frame = 2, None
    for _ in range(_MOST_TABLES):
        if len(data) < at + 10 or data[at] != 0xFF:
            return None
        marker = data[at + 1]
        length, precision, height, width, components = struct.unpack_from(">HBHHB", data, at + 2)
        at += 2 + length
        if marker == _SOS:
            return frame if _ends_well(data, at) else None
        if marker in _FRAMES:
            if frame is not None or precision != 8:
                return None
            frame = Frame(width, height, components, marker == _PROGRESSIVE)
        elif length < 2 or marker in _ALONE or marker in _OTHER_FRAMES:
            return None
    return None


@cache
def _markers() -> NDArray[np.bool_]:
    """(256,) which second bytes make a marker; stuffing, filling and restarts are part of a scan's own data."""
    import numpy as np

    markers = np.ones(256, bool)
    markers[[0x00, 0xFF, *range(0xD0, 0xD8)]] = False
    return markers


def _ends_well(data: bytes, at: int) -> bool:
    """Whether there is an end after a scan's header, and nothing before it that does not belong there."""
    import numpy as np

    if len(data) < at + 2:
        return False
    # NumPy finds markers several times as fast as a search for patterns.
    scan = np.frombuffer(data, np.uint8, offset=at)
    marks = scan[np.flatnonzero(scan[:-1] == 0xFF) + 1]
    for marker in marks[_markers()[marks]].tolist():
        if marker not in _BEFORE_THE_END:
            return bool(marker == END[1])
    return False


def bare_jpeg(data: bytes) -> BareFile:
    """Leave the application segments and comments out, but for the two that tell what the colours are.

    Raises:
        ImageError: ``IMAGE_CORRUPT``: there are absurdly many segments.
    """
    kept: list[bytes | memoryview] = [data[:2]]
    view = memoryview(data)
    exif = xmp = None
    chapters: dict[int, bytes] = {}
    promised = 0
    at = 2
    for _ in range(_MOST_SEGMENTS):
        at = data.find(b"\xff", at)
        if at < 0 or at + 4 > len(data):
            break
        marker = data[at + 1]
        if marker in (0x00, 0xFF):
            at += 1
            continue
        if marker in _ALONE:
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if marker == _SOS:
            kept.append(view[at:])
            break
        if length < 2:
            at += 2
            continue
        body = view[at + 4 : end]
        if 0xE0 <= marker <= 0xEF:
            start = bytes(body[:32])
            if marker == 0xE1 and start.startswith(_EXIF):
                exif = exif or exif_orientation(bytes(body))
            elif marker == 0xE1 and start.startswith(_XMP):
                xmp = xmp or xmp_orientation(bytes(body))
            elif marker == 0xE2 and start.startswith(_ICC) and len(body) > 14:
                chapters[body[12]], promised = bytes(body[14:]), body[13]
            colours = (marker == 0xE0 and start.startswith(b"JFIF\0") and len(body) >= 14) or (
                marker == 0xEE and start.startswith(b"Adobe") and len(body) >= 12
            )
            if colours:
                kept.append(view[at:end])
        elif marker != _COMMENT:
            kept.append(view[at:end])
        at = end
    else:
        raise too_many_parts("JPEG", _MOST_SEGMENTS)
    whole = len(chapters) == promised and promised > 0
    profile = b"".join(chapters[number] for number in sorted(chapters)) if whole else None
    return BareFile(b"".join(kept), exif or xmp or 1, profile)


def without_end(data: bytes) -> bytes:
    """Return the data of a cut file up to its last byte that can be a picture's."""
    ended = data.rstrip(b"\0")
    if len(data) - len(ended) < _PADDING:
        ended = data
    elif ended.endswith(b"\xff"):
        ended += b"\0"
    return ended[:-1] if ended.endswith(b"\xff") else ended
