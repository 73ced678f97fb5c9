"""Protobuf's variable-length integers, for what is written to the wire by hand."""

from __future__ import annotations

__all__ = ["varint"]


def varint(number: int) -> bytes:
    """A non-negative integer in groups of seven bits, the least significant first."""
    if number < 128:
        return bytes((number,))
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
