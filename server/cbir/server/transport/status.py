"""Errors on the wire: a canonical code and exactly one ``google.rpc.ErrorInfo`` for everything that goes wrong."""

from __future__ import annotations

import logging
import secrets
from functools import lru_cache
from typing import NoReturn

import grpc
from google.protobuf import any_pb2, message
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from cbir.core.errors import (
    ArtifactError,
    CbirError,
    ConfigurationError,
    EnsembleError,
    ImageError,
    QueryError,
    StoreUnavailableError,
    UnknownImageError,
    forget_frames,
)
from cbir.server.access import AccessError, ScopeError
from cbir.server.engine import PictureError
from cbir.server.queue import DeadlineError, NotReadyError, OverloadedError
from cbir.server.transport.intake import SlowRequestError

__all__ = ["DOMAIN", "abort", "fail", "to_status"]

_log = logging.getLogger(__name__)

#: ``ErrorInfo.domain`` of every error.
DOMAIN = "ensemble-cbir"

# The first line that fits counts, so that the more special ones come first.
_CODES: tuple[tuple[type[CbirError], grpc.StatusCode], ...] = (
    (AccessError, grpc.StatusCode.UNAUTHENTICATED),
    (ScopeError, grpc.StatusCode.PERMISSION_DENIED),
    (UnknownImageError, grpc.StatusCode.NOT_FOUND),
    (PictureError, grpc.StatusCode.NOT_FOUND),
    (QueryError, grpc.StatusCode.INVALID_ARGUMENT),
    (ImageError, grpc.StatusCode.INVALID_ARGUMENT),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (NotReadyError, grpc.StatusCode.UNAVAILABLE),
    (StoreUnavailableError, grpc.StatusCode.UNAVAILABLE),
    (DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (SlowRequestError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (ArtifactError, grpc.StatusCode.FAILED_PRECONDITION),
    (EnsembleError, grpc.StatusCode.FAILED_PRECONDITION),
    (ConfigurationError, grpc.StatusCode.FAILED_PRECONDITION),
)
_CODES_BY_REASON = {
    "IMAGE_TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "NO_DECODING_WORKERS": grpc.StatusCode.UNAVAILABLE,
}

# Which field of the request is to blame.
_FIELDS = {
    "BAD_CROP": "options.crop",
    "BAD_EMBEDDING": "query.embedding",
    "BAD_FILTER": "options.filter",
    "BAD_FUSION": "options.fusion",
    "BAD_LIMIT": "options.limit",
    "BAD_MIN_SCORE": "options.min_score",
    "BAD_PAGE_TOKEN": "page_token",
    "BAD_THUMBNAIL": "thumbnail",
    "BAD_WEIGHT": "options.weights",
    "CONTRADICTORY_EXAMPLES": "query",
    "EMPTY_QUERY": "query",
    "EMPTY_TEXT": "query.text",
    "TEXT_TOO_LONG": "query.text",
    "TEXT_UNSUPPORTED": "query.text",
    "TEXT_WITH_EXAMPLES": "query",
    "TOO_MANY_EXAMPLES": "query",
    "UNKNOWN_MEMBER": "query.embedding",
}

# Status travels in HTTP/2 trailers, of which clients accept 8 KiB; a message is in there three times, once
# percent-encoded.
_LONGEST_MESSAGE = 600
_LONGEST_VALUE = 200


def to_status(error: BaseException) -> status_pb2.Status:
    """Describe an error for the client, for good: what it still holds of the request is freed.

    What is no :class:`~cbir.core.errors.CbirError` is a fault of the server: it is logged with its traceback under a
    number, and the client learns the number only.
    """
    try:
        return _describe(error)
    finally:
        forget_frames(error)


def _describe(error: BaseException) -> status_pb2.Status:
    if not isinstance(error, CbirError):
        incident = secrets.token_hex(4)
        _log.error("incident %s", incident, exc_info=error)
        text = f"the server failed on this request; its log tells more under incident {incident}"
        return _status(grpc.StatusCode.INTERNAL, text, "INTERNAL", {"incident": incident})
    code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.FAILED_PRECONDITION)
    code = _CODES_BY_REASON.get(error.reason, code)
    text = _shortened(str(error), _LONGEST_MESSAGE)
    details: list[message.Message] = []
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        violation = error_details_pb2.BadRequest.FieldViolation(field=_field(error), description=text)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, OverloadedError):
        nanoseconds = round(error.retry_after * 1e9)
        delay = Duration(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return _status(code, text, error.reason, error.metadata, *details)


async def abort(context: grpc.aio.ServicerContext, error: BaseException) -> NoReturn:
    """End a call with the status of an error."""
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort returned")


def fail(context: grpc.aio.ServicerContext, error: BaseException) -> bytes:
    """End a unary call with the status of an error by returning what this returns.

    A flooded server refuses more calls than it answers, and :func:`abort` costs several times as much.
    """
    status = _refusal(error) if isinstance(error, OverloadedError) else rpc_status.to_status(to_status(error))
    context.set_code(status.code)
    context.set_details(status.details)
    context.set_trailing_metadata(status.trailing_metadata)
    return b""


def _refusal(error: OverloadedError) -> grpc.Status:
    """What a flooded server says again and again is written once."""
    forget_frames(error)
    return _overloaded(str(error), error.retry_after, error.reason)


@lru_cache(maxsize=1024)
def _overloaded(text: str, retry_after: float, reason: str) -> grpc.Status:
    return rpc_status.to_status(to_status(OverloadedError(text, retry_after, reason)))


def _status(
    code: grpc.StatusCode, text: str, reason: str, metadata: dict[str, str], *details: message.Message
) -> status_pb2.Status:
    facts = {name: _shortened(value, _LONGEST_VALUE) for name, value in metadata.items()}
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=facts)
    packed = []
    for detail in (info, *details):
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code.value[0], message=text, details=packed)


def _field(error: CbirError) -> str:
    if isinstance(error, ImageError):
        return "query.image"
    if error.reason == "UNKNOWN_MEMBER" and error.metadata.get("option") == "weights":
        return "options.weights"
    return _FIELDS.get(error.reason, "query")


def _shortened(text: str, most: int) -> str:
    """At most ``most`` bytes of UTF-8."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= most:
        return encoded.decode()
    return encoded[: most - 3].decode(errors="ignore") + "…"
