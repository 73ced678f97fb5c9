"""ICC profiles made by hand: three primaries and a curve, as cameras, phones and raw converters embed them."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

__all__ = ["PRIMARIES", "profile", "to_srgb"]

#: Red, green, blue and white (x, y), and the exponent of the curve.
PRIMARIES: dict[str, tuple[tuple[tuple[float, float], ...], float]] = {
    "Display P3": (((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290)), 2.2),
    "Adobe RGB": (((0.640, 0.330), (0.210, 0.710), (0.150, 0.060), (0.3127, 0.3290)), 2.2),
    "ProPhoto": (((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), (0.3457, 0.3585)), 1.8),
}
_SRGB = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), (0.3127, 0.3290))
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def _to_d50(points: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
    """The (3, 3) way from linear RGB to XYZ under D50."""
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in points]).T
    white = columns[:, 3]
    matrix = columns[:, :3] * np.linalg.solve(columns[:, :3], white)
    gain = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    return np.linalg.inv(_BRADFORD) @ np.diag(gain) @ _BRADFORD @ matrix


def profile(name: str) -> bytes:
    """The bytes of a display profile."""
    points, gamma = PRIMARIES[name]
    matrix = _to_d50(points)

    def xyz(values: NDArray[np.float64]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * value) for value in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma)) + b"\0\0"
    text = name.encode() + b"\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78 + 3 - (len(text) + 78 + 12 - 1) % 4)
    tags = {
        b"desc": description, b"cprt": b"text\0\0\0\0none", b"wtpt": xyz(_D50), b"rXYZ": xyz(matrix[:, 0]),
        b"gXYZ": xyz(matrix[:, 1]), b"bXYZ": xyz(matrix[:, 2]), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
    }  # fmt: skip
    at, table, body = 132 + 12 * len(tags), b"", b""
    for tag, value in tags.items():
        value += bytes(-len(value) % 4)
        table += tag + struct.pack(">II", at + len(body), len(value))
        body += value
    size = at + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"test", 0x02400000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp"
    header += bytes(28) + struct.pack(">3i", *(round(65536 * value) for value in _D50))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def to_srgb(name: str, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The same colours as sRGB of 0..255, by the definitions."""
    points, gamma = PRIMARIES[name]
    linear = (pixels / 255.0) ** gamma
    inside = np.clip(linear @ (np.linalg.inv(_to_d50(_SRGB)) @ _to_d50(points)).T, 0, 1)
    return 255 * np.where(inside <= 0.0031308, 12.92 * inside, 1.055 * inside ** (1 / 2.4) - 0.055)
