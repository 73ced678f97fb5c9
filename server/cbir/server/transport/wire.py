"""Queries and answers as the bytes that travel, so that each is parsed once, written once, and kept as it was sent."""

from __future__ import annotations

import hashlib
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2  # type: ignore[import-untyped]

from cbir.core.errors import QueryError
from cbir.server.engine import ImageBytes
from cbir.server.transport import conversion
from cbir.server.transport.varints import varint
from cbir.v1 import search_pb2

__all__ = ["Question", "parse", "stream_answer", "stream_error"]

M = TypeVar("M", bound=Message)


def parse(kind: type[M], data: bytes) -> M:
    """Read a message.

    Raises:
        QueryError: ``BAD_MESSAGE``.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise QueryError(
            f"the {len(data):,} bytes of the request are no {kind.DESCRIPTOR.name}: generate the client from the API",
            reason="BAD_MESSAGE",
        ) from error


class Question:
    """A request, read.

    Attributes:
        query: What it asks.

    Args:
        request: Loses its image, so that it is not kept twice.

    Raises:
        QueryError: An enum value that this server does not know.
    """

    __slots__ = ("_request", "query")

    def __init__(self, request: search_pb2.SearchRequest) -> None:
        self.query = conversion.query_from_request(request)
        self._request = request
        if isinstance(self.query.source, ImageBytes):
            request.query.image = b""

    def fingerprint(self) -> bytes:
        """What makes two queries the same: the bytes of the image or the embedding, and all options."""
        rest = self._request.SerializeToString(deterministic=True)
        digest = hashlib.sha256(len(rest).to_bytes(8, "little"))
        digest.update(rest)
        if isinstance(self.query.source, ImageBytes):
            digest.update(self.query.source.data)
        return digest.digest()


def stream_answer(request_id: str, response: bytes) -> bytes:
    """A ``SearchStreamResponse`` around a ``SearchResponse``, which is copied and not parsed again."""
    return (
        search_pb2.SearchStreamResponse(request_id=request_id).SerializeToString()
        + _RESPONSE
        + varint(len(response))
        + response
    )


def stream_error(request_id: str, error: status_pb2.Status) -> bytes:
    """A ``SearchStreamResponse`` that says why there is no answer."""
    return search_pb2.SearchStreamResponse(request_id=request_id, error=error).SerializeToString()


# The tag of a field that holds a message: its number, and 2 for "a length follows".
_RESPONSE = bytes((search_pb2.SearchStreamResponse.RESPONSE_FIELD_NUMBER << 3 | 2,))
