"""Queries and answers as the bytes that travel, so that each is parsed once, written once, and kept as it was sent."""

from __future__ import annotations

import hashlib

from google.rpc import status_pb2  # type: ignore[import-untyped]

from cbir.server.engine import ImageBytes
from cbir.server.transport import conversion
from cbir.server.transport.bounded_parsing import parse
from cbir.server.transport.varints import varint
from cbir.v1 import search_pb2

__all__ = ["Question", "stream_answer", "stream_error"]


class Question:
    """A request, read.

    Attributes:
        query: What it asks.

    Args:
        request: With an empty image, where it has one.
        image: The image.

    Raises:
        QueryError: An enum value that this server does not know.
    """

    __slots__ = ("_request", "query")

    def __init__(self, request: search_pb2.SearchRequest, image: bytes = b"") -> None:
        self.query = conversion.query_from_request(request, image)
        self._request = request

    @classmethod
    def read(cls, data: bytes) -> Question:
        """Read a serialised ``SearchRequest``.

        Raises:
            QueryError: It is none, or too large, or holds an enum value that this server does not know.
        """
        return cls(*parse(search_pb2.SearchRequest, data))

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
