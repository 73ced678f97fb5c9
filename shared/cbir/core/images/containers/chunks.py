"""PNG and WebP: files of chunks, of which those are kept that make the picture; what the others tell is taken out."""

from __future__ import annotations

import zlib

from cbir.core.images.containers.bare_file import BareFile, too_many_parts
from cbir.core.images.orientation import exif_orientation, xmp_orientation

__all__ = ["PNG_START", "bare_png", "bare_webp"]

PNG_START = b"\x89PNG\r\n\x1a\n"

_MOST_CHUNKS = 200_000

_MOST_METADATA = 4 * 2**20
_PNG_PICTURE = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_FACTS = (b"eXIf", b"iCCP", b"iTXt", b"zTXt", b"tEXt", b"tRNS")
_RAW_EXIF = b"Raw profile type exif"
_RAW_APP1 = b"Raw profile type APP1"
_WEBP_PICTURE = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
#: Bits of VP8X that promise an ICC profile, EXIF and XMP.
_PROMISES = 0x20 | 0x08 | 0x04
#: Fewest bytes that a transparent colour takes, by the header's colour type.
_TRANSPARENT = {0: 2, 2: 6, 3: 1}


def bare_png(data: bytes) -> BareFile:
    """Leave all chunks out but those that make the picture; of an animation the picture shown by other programs stays.

    Raises:
        ImageError: ``IMAGE_CORRUPT``: there are absurdly many chunks.
    """
    view = memoryview(data)
    kept: list[bytes | memoryview] = [data[:8]]
    orientation = raw = xmp = profile = None
    at, left = 8, False
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            kept.append(view[at:])
            break
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        end = at + 12 + length
        if kind in _PNG_PICTURE or not kind.isalpha() or kind[:1].isupper():
            # A critical chunk that is not known is the decoder's to refuse.
            kept.append(view[at:end])
        else:
            left = True
            body = _body(data, at, length) if kind in _FACTS else None
            if body is None:
                pass
            elif kind == b"eXIf":
                orientation = orientation or exif_orientation(body)
            elif kind == b"iCCP":
                profile = profile or _profile(body)
            elif kind == b"tRNS" and length >= _TRANSPARENT.get(data[25] if len(data) > 25 else 0, 0):
                kept.append(view[at:end])
            elif kind in (b"tEXt", b"zTXt") and body.startswith((_RAW_EXIF, _RAW_APP1)):
                raw = raw or exif_orientation(_raw_profile(kind, body))
            elif kind == b"iTXt" and body.startswith(b"XML:com.adobe.xmp\0\0"):
                xmp = xmp or xmp_orientation(body)
        if kind == b"IEND":
            break
        at = end
    else:
        raise too_many_parts("PNG", _MOST_CHUNKS)
    return BareFile(b"".join(kept) if left else data, orientation or raw or xmp or 1, profile)


def bare_webp(data: bytes) -> BareFile:
    """Leave out what is not the picture, and correct the sizes and promises that spoke of it.

    Raises:
        ImageError: ``IMAGE_CORRUPT``: there are absurdly many chunks.
    """
    kept: list[bytes] = []
    orientation = xmp = profile = None
    promised, at = 0, 12
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            break
        kind = data[at : at + 4]
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        body = data[at + 8 : at + 8 + length]
        if kind == b"VP8X" and length >= 10:
            promised += end - at
            kept.append(data[at : at + 8] + bytes((body[0] & ~_PROMISES,)) + data[at + 9 : end])
        elif kind in _WEBP_PICTURE:
            promised += end - at
            kept.append(data[at:end])
        elif kind == b"EXIF":
            orientation = orientation or exif_orientation(body)
        elif kind == b"XMP ":
            xmp = xmp or xmp_orientation(body)
        elif kind == b"ICCP":
            profile = profile or body
        at = end
    else:
        raise too_many_parts("WEBP", _MOST_CHUNKS)
    # Counted as promised: where the picture itself is cut, it goes on being told as cut.
    bare = b"RIFF" + min(4 + promised, 2**32 - 1).to_bytes(4, "little") + b"WEBP" + b"".join(kept)
    return BareFile(bare, orientation or xmp or 1, profile)


def _body(data: bytes, at: int, length: int) -> bytes | None:
    """Return what a chunk holds, ``None`` where it is damaged or large enough to be meant badly."""
    if length > _MOST_METADATA:
        return None
    body = data[at + 8 : at + 8 + length]
    checksum = int.from_bytes(data[at + 8 + length : at + 12 + length], "big")
    return body if len(body) == length and zlib.crc32(data[at + 4 : at + 8 + length]) == checksum else None


def _profile(body: bytes) -> bytes | None:
    name, _, packed = body.partition(b"\0")
    return _unpack(packed[1:]) if packed[:1] == b"\0" and len(name) < 80 else None


def _raw_profile(kind: bytes, body: bytes) -> bytes:
    """Unpack the EXIF block that ImageMagick writes as hexadecimal text: a line of name, one of length, digits."""
    _, _, text = body.partition(b"\0")
    if kind == b"zTXt":
        text = _unpack(text[1:]) or b""
    digits = b"".join(text.split(b"\n")[3:])
    try:
        return bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        return b""


def _unpack(packed: bytes) -> bytes | None:
    try:
        unpacked = zlib.decompressobj()
        text = unpacked.decompress(packed, _MOST_METADATA)
    except zlib.error:
        return None
    return text if not unpacked.unconsumed_tail else None
