"""JPEG: the segments before the first scan, and files that lack their last two bytes."""

from __future__ import annotations

from cbir.core.images.bare_file import BareFile, too_many_parts
from cbir.core.images.orientation import exif_orientation, xmp_orientation

__all__ = ["END", "OTHER_ENDS", "bare_jpeg", "without_end"]

END = b"\xff\xd9"
#: What may be read on after a cut file; unlike the zeros that the decoder itself reads there, it begins with ones.
OTHER_ENDS = (b"\xaa" * 1024, bytes(range(240, 0, -1)) * 4)

_MOST_SEGMENTS = 20_000
_EXIF, _XMP, _ICC = b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_SOI, _SOS, _COMMENT = 0xD8, 0xDA, 0xFE
_ALONE = frozenset((0x01, *range(0xD0, 0xDA)))
#: Zeros at the end of a file that are not its data but space that was laid out for it.
_PADDING = 16


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
