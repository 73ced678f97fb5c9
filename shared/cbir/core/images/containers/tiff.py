"""TIFF: the first directory with the entries that the pixels need, and what the others tell about them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cbir.core.images.containers.bare_file import BareFile
from cbir.core.images.orientation import xmp_orientation

__all__ = ["bare_tiff"]

_ORIENTATION, _XMP, _PROFILE, _NO_DATA = 274, 700, 34675, 42113
#: What says how the pixels are stored: size, depth, compression, strips, tiles, palette, old and new JPEG, YCbCr.
_PIXELS = frozenset(
    (
        256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339,
        347, *range(512, 522), 529, 530, 531, 532,
    )
)  # fmt: skip
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WHOLE = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
_MOST_METADATA = 4 * 2**20


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a directory is written: classic TIFF, or BigTIFF with eight bytes where the other has two or four."""

    order: str
    big: bool

    @property
    def count(self) -> str:
        return self.order + ("Q" if self.big else "H")

    @property
    def entry(self) -> int:
        return 20 if self.big else 12

    @property
    def room(self) -> int:
        """Bytes of a value that stand in the entry itself."""
        return 8 if self.big else 4

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.big else "I")


def bare_tiff(data: bytes) -> BareFile:
    """Leave the entries out that no pixel needs, and all pictures but the first."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "<")
    layout = _Layout(order, data[2:4] in (b"+\0", b"\0+"))
    try:
        (start,) = struct.unpack_from(layout.offset, data, layout.room)
        (count,) = struct.unpack_from(layout.count, data, start)
        first = start + struct.calcsize(layout.count)
        if count > 4096 or first + count * layout.entry > len(data):
            return BareFile(data)
        entries = [data[at : at + layout.entry] for at in range(first, first + count * layout.entry, layout.entry)]
    except struct.error:
        return BareFile(data)
    tags = [struct.unpack_from(order + "H", entry)[0] for entry in entries]
    told = dict(zip(reversed(tags), reversed(entries), strict=True))
    kept = [entry for tag, entry in zip(tags, entries, strict=True) if tag in _PIXELS]
    bare = bytearray(data)
    directory = struct.pack(layout.count, len(kept)) + b"".join(kept) + bytes(layout.room)
    bare[start : start + len(directory)] = directory
    values = {tag: _value(data, told[tag], layout) for tag in (_XMP, _PROFILE, _NO_DATA) if tag in told}
    orientation = _orientation(told[_ORIENTATION], layout) if _ORIENTATION in told else None
    return BareFile(
        bytes(bare),
        orientation or xmp_orientation(values.get(_XMP, b"")) or 1,
        values.get(_PROFILE) or None,
        _number(values.get(_NO_DATA, b"")),
    )


def _orientation(entry: bytes, layout: _Layout) -> int | None:
    (kind,) = struct.unpack_from(layout.order + "H", entry, 2)
    if kind not in _WHOLE:
        return None
    value = int(struct.unpack_from(layout.order + _WHOLE[kind], entry, layout.entry - layout.room)[0])
    return value if 1 <= value <= 8 else None


def _value(data: bytes, entry: bytes, layout: _Layout) -> bytes:
    """Return the bytes of an entry's value; none where they are not there."""
    (kind,) = struct.unpack_from(layout.order + "H", entry, 2)
    (count,) = struct.unpack_from(layout.offset, entry, 4)
    size = _SIZES.get(kind, 1) * count
    at = layout.entry - layout.room
    if size <= layout.room:
        return entry[at : at + size]
    (start,) = struct.unpack_from(layout.offset, entry, at)
    return data[start : start + size] if size <= _MOST_METADATA else b""


def _number(text: bytes) -> float | None:
    try:
        return float(text.rstrip(b"\0 ").decode("ascii")) if text else None
    except ValueError:
        return None
