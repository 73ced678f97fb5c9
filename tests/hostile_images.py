"""Image files that are made to harm those who decode them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def jpeg(width: int = 64, height: int = 48, **options: object) -> bytes:
    """A JPEG of noise."""
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "JPEG", **options)
    return out.getvalue()


def many_scans(count: int, width: int = 512, height: int = 512) -> bytes:
    """A progressive JPEG whose last scan comes ``count`` times more; each costs a pass over the whole picture."""
    data = jpeg(width, height, progressive=True, quality=5)
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * count + b"\xff\xd9"


def many_segments(total: int, each: int = 4) -> bytes:
    """A JPEG with ``total`` bytes of APP1 segments before its picture."""
    data = jpeg()
    segment = b"\xff\xe1" + struct.pack(">H", each + 2) + bytes(each)
    return data[:2] + segment * (total // len(segment)) + data[2:]


def deep_png(width: int, height: int, *, depth: int = 16, colour: int = 0) -> bytes:
    """A PNG of zeros, a few hundred bytes for each million pixels.

    Args:
        colour: 0: grey; 2: RGB; 6: RGB with transparency.
    """

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = 1 + width * {0: 1, 2: 3, 6: 4}[colour] * depth // 8
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(row)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def skipping_bmp(width: int, height: int) -> bytes:
    """A BMP whose rows are one pixel and an end of line: an interpreted loop fills them up, pixel by pixel."""
    code = bytes((1, 7, 0, 0)) * height + bytes((0, 1))
    palette = bytes(4 * 256)
    offset = 14 + 40 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", offset + len(code), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(code), 0, 0, 256, 0)
    return head + info + palette + code


def float_tiff(width: int, height: int) -> bytes:
    """A TIFF of floating-point numbers, compressed to next to nothing."""
    out = io.BytesIO()
    Image.new("F", (width, height)).save(out, "TIFF", compression="tiff_adobe_deflate")
    return out.getvalue()


def garbled_fax(width: int = 2000, height: int = 2000) -> bytes:
    """A fax TIFF of nonsense: libtiff prints a line for every row of it."""
    out = io.BytesIO()
    Image.new("1", (width, height), 1).save(out, "TIFF", compression="group3")
    data = bytearray(out.getvalue())
    noise = np.random.default_rng(1).integers(0, 256, len(data) - 200, dtype=np.uint8).tobytes()
    data[8 : 8 + len(noise)] = noise
    return bytes(data)
