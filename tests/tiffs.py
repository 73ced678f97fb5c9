"""TIFF files made by hand, in every kind of pixel that Pillow can open; it writes only some of them itself."""

from __future__ import annotations

import struct

__all__ = ["tiff"]


def tiff(
    size: tuple[int, int],
    photometric: int,
    bits: tuple[int, ...],
    data: bytes,
    *,
    sample_format: tuple[int, ...] = (1,),
    fill_order: int = 1,
    extra: tuple[int, ...] = (),
    order: str = "<",
    orientation: int = 1,
    big: bool = False,
) -> bytes:
    """An uncompressed TIFF of one strip; ``big`` makes it a BigTIFF."""
    width, height = size
    entries: list[tuple[int, str, tuple[int, ...]]] = [
        (256, "I", (width,)), (257, "I", (height,)), (258, "H", bits), (259, "H", (1,)), (262, "H", (photometric,)),
        (266, "H", (fill_order,)), (273, "I", (0,)), (274, "H", (orientation,)), (277, "H", (len(bits),)),
        (278, "I", (height,)), (279, "I", (len(data),)), (339, "H", sample_format),
    ]  # fmt: skip
    if photometric == 3:
        ramp = tuple(value * 65535 // (2 ** bits[0] - 1) for value in range(2 ** bits[0]))
        entries.append((320, "H", 3 * ramp))
    if extra:
        entries.append((338, "H", extra))
    room, count, offset = (8, "Q", "Q") if big else (4, "H", "I")
    start = 16 if big else 8
    head = struct.pack(order + "HHHQ", 43, 8, 0, start) if big else struct.pack(order + "HI", 42, start)
    head = (b"II" if order == "<" else b"MM") + head
    body = start + struct.calcsize(order + count) + len(entries) * (4 + 2 * room) + room
    at_end = sum(
        len(raw)
        for _, kind, values in entries
        if len(raw := struct.pack(f"{order}{len(values)}{kind}", *values)) > room
    )
    table, tail = struct.pack(order + count, len(entries)), b""
    for tag, kind, values in sorted(entries):
        if tag == 273:
            values = (body + at_end,)
        raw = struct.pack(f"{order}{len(values)}{kind}", *values)
        place = raw.ljust(room, b"\0") if len(raw) <= room else struct.pack(order + offset, body + len(tail))
        tail += raw if len(raw) > room else b""
        table += struct.pack(f"{order}HH{offset}", tag, {"H": 3, "I": 4}[kind], len(values)) + place
    return head + table + bytes(room) + tail + data
