"""Requests are looked through before they are parsed, and their image is taken out.

Parsing and converting cost up to a thousand times what a field costs on the wire: a message of some megabytes, made of
millions of empty strings or map entries, would hold up the event loop for seconds and take gigabytes.  So the fields of
a message are counted first, and all of it but the image is limited to more than an honest request ever needs.  The
image itself is copied once, and the parser never sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from cbir.core.errors import QueryError
from cbir.server.transport.varints import varint
from cbir.v1 import search_pb2

__all__ = ["MAX_FIELDS", "MAX_REST", "aside", "parse"]

#: Most fields of one request, at all depths.
MAX_FIELDS = 8192
#: Most bytes of a request besides its image: the embeddings of a dozen large models take half of it.
MAX_REST = 2**20

#: Messages up to this size have no more fields than are allowed, as each takes two bytes at least.
_WITHIN_LIMITS = 2 * MAX_FIELDS

_IMAGE = search_pb2.Query.DESCRIPTOR.fields_by_name["image"]

#: Messages up to this size are read on the event loop, in less than a thread would take to wake; others on a thread.
_INLINE = 256 * 2**10

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5

M = TypeVar("M", bound=Message)
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class _Layout:
    """The fields of a message that are messages themselves, by number, and where the image is."""

    inner: dict[int, _Layout]
    image: int | None


@cache
def _layout(message: Any) -> _Layout:
    fields = message.fields_by_number.items()
    inner = {number: _layout(f.message_type) for number, f in fields if f.type == FieldDescriptor.TYPE_MESSAGE}
    return _Layout(inner, _IMAGE.number if message is _IMAGE.containing_type else None)


def parse(kind: type[M], data: bytes) -> tuple[M, bytes]:
    """Read a message that holds a query somewhere.

    Returns:
        The message, with an empty image where it has one, and the image.

    Raises:
        QueryError: ``BAD_MESSAGE``; ``TOO_MANY_FIELDS``; ``REQUEST_TOO_LARGE``.
    """
    if len(data) <= _WITHIN_LIMITS:
        return _parse_short(kind, data)
    walk = _Walk(kind.DESCRIPTOR.name, data)
    rest = b"".join(walk.without_image(0, len(data), _layout(kind.DESCRIPTOR)))
    if len(rest) > MAX_REST:
        raise QueryError(
            f"the request has {len(rest):,} bytes besides its image, more than the limit of {MAX_REST:,}: leave out "
            "what is not needed",
            reason="REQUEST_TOO_LARGE",
            limit=MAX_REST,
        )
    try:
        return kind.FromString(rest), walk.image
    except DecodeError as error:
        raise walk.refusal() from error


def _parse_short(kind: type[M], data: bytes) -> tuple[M, bytes]:
    """Read a message that is too short to exceed any limit: looking through it would take as long as parsing it."""
    try:
        message = kind.FromString(data)
    except DecodeError as error:
        raise _Walk(kind.DESCRIPTOR.name, data).refusal() from error
    asked: Any = message.request if isinstance(message, search_pb2.SearchStreamRequest) else message
    if not isinstance(asked, search_pb2.SearchRequest) or asked.query.WhichOneof("source") != _IMAGE.name:
        return message, b""
    query = asked.query
    image = query.image
    query.image = b""
    return message, image


async def aside(read: Callable[[bytes], Outcome], data: bytes) -> Outcome:
    """Read a message, on another thread where it is large, so that the event loop goes on."""
    return read(data) if len(data) <= _INLINE else await asyncio.to_thread(read, data)


class _Walk:
    """One pass over the bytes of a message.

    Attributes:
        image: The last image that was met: of fields that exclude each other the last one counts.
    """

    def __init__(self, kind: str, data: bytes) -> None:
        self._kind, self._data, self._fields = kind, data, 0
        self.image = b""

    def without_image(self, place: int, end: int, layout: _Layout) -> list[bytes]:
        """The pieces of the message from ``place`` to ``end``, its image replaced by an empty one."""
        data, inner, kept = self._data, layout.inner, place
        pieces: list[bytes] = []
        while place < end:
            self._count()
            begun = place
            tag, place = self._varint(place, end)
            number, form = tag >> 3, tag & 7
            if form == _LENGTH:
                length, place = self._varint(place, end)
                start, place = place, place + length
                if place > end:
                    raise self.refusal()
                if number == layout.image:
                    self.image = data[start:place]
                    pieces += (data[kept:begun], varint(tag), b"\0")
                    kept = place
                elif number in inner:
                    changed = self.without_image(start, place, inner[number])
                    if len(changed) > 1:
                        size = sum(map(len, changed))
                        pieces += (data[kept:begun], varint(tag), varint(size), *changed)
                        kept = place
            elif form == _VARINT:
                _, place = self._varint(place, end)
            elif form == _FOUR_BYTES:
                place += 4
            elif form == _EIGHT_BYTES:
                place += 8
            else:
                # Groups, which this API never had, or no message at all.
                raise self.refusal()
        if place != end:
            raise self.refusal()
        pieces.append(data[kept:end])
        return pieces

    def refusal(self) -> QueryError:
        """Why bytes that are no message are refused."""
        return QueryError(
            f"the {len(self._data):,} bytes of the request are no {self._kind}: generate the client from the API",
            reason="BAD_MESSAGE",
        )

    def _count(self) -> None:
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise QueryError(
                f"the request has more than {MAX_FIELDS:,} fields: leave out what is not needed",
                reason="TOO_MANY_FIELDS",
                limit=MAX_FIELDS,
            )

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        """The number at a place, and the place behind it."""
        data, value, shift = self._data, 0, 0
        while place < end and shift < 70:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, place
            shift += 7
        raise self.refusal()
