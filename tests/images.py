"""Images and broken files that tests of every part use."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

__all__ = ["encode", "gradient", "pattern", "png_bomb", "truncated_jpeg"]


def gradient(width: int = 48, height: int = 32) -> Image.Image:
    """Red grows to the right, green grows downwards: every orientation looks different."""
    x = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    y = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 40)], axis=2).astype(np.uint8))


def pattern(kind: int, seed: int, side: int = 48) -> Image.Image:
    """A picture of class ``kind`` (0..3: stripes, checks, rings, blobs) that varies with the seed."""
    rng = np.random.default_rng(1000 * kind + seed)
    y, x = np.mgrid[0:side, 0:side] / side
    shift = rng.uniform(0, 6)
    wave = [
        np.sin(40 * x + shift),
        np.sign(np.sin(20 * x + shift) * np.sin(20 * y + shift)),
        np.sin(50 * np.hypot(x - 0.5, y - 0.5) + shift),
        np.cos(9 * x + shift) + np.cos(9 * y - shift) - 1,
    ][kind]
    colour = rng.uniform(60, 230, 3)
    noise = rng.normal(0, 8, (side, side, 3))
    return Image.fromarray(np.clip((0.6 + 0.4 * wave)[..., None] * colour + noise, 0, 255).astype(np.uint8))


def encode(image: Image.Image, format_: str, **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def truncated_jpeg() -> bytes:
    """A JPEG of which the second half is missing."""
    data = encode(pattern(3, 0, 128), "JPEG", quality=95)
    return data[: len(data) // 2]


def png_bomb(side: int = 30000) -> bytes:
    """A PNG of a few hundred kilobytes whose header promises side x side pixels, made without holding them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    squeeze = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    parts = [squeeze.compress(row) for _ in range(side)]
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = b"".join([*parts, squeeze.flush()])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
