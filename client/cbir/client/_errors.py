"""The client's one exception tree.

CbirClientError
├── InvalidQuery          the query cannot be used: bad image, bad option, unreadable file
│   └── TooLarge          ... because it is larger than the server or this client accepts
├── NotFound              no image or version has that id
├── FailedPrecondition    the server's state does not allow the call (such as a version that cannot be loaded)
├── Unsupported           the server does not offer the call
├── Overloaded            the server is overloaded; ``retry_after`` says when to try again, if it can
├── Unavailable           no server answers, or it has no index ready
├── DeadlineExceeded      no answer within the timeout
├── Cancelled             the call was cancelled, here or by the server
├── Unauthenticated       the server requires credentials
│   └── PermissionDenied  ... and those given do not suffice
└── ServerError           the server failed

The names are those of gRPC's status codes, so they do not end in "Error".
"""

# ruff: noqa: N818

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "Cancelled",
    "CbirClientError",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "InvalidQuery",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "ServerError",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
]


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request that the server refused.

    Attributes:
        field: The path of the field, such as ``options.limit``.
        description: What is wrong with it.
    """

    field: str
    description: str


class CbirClientError(Exception):
    """Root of everything the client raises.

    Attributes:
        reason: Stable UPPER_SNAKE name for programs, such as ``IMAGE_TRUNCATED``; empty if there is none.
        metadata: Further facts by name.
        violations: The fields that the server refused.
        retry_after: Seconds after which the server asks the client to try again; None if it does not say.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = violations
        self.retry_after = retry_after


class InvalidQuery(CbirClientError):
    """The query cannot be used; sending it again will not help."""


class TooLarge(InvalidQuery):
    """The query or the answer is larger than the server or this client accepts."""


class NotFound(CbirClientError):
    """No image or version has that id."""


class FailedPrecondition(CbirClientError):
    """The server's state does not allow the call."""


class Unsupported(CbirClientError):
    """The server does not offer the call."""


class Overloaded(CbirClientError):
    """The server is overloaded; the client has already tried again while time was left.

    ``retry_after`` is None where the server's transport dropped the call before it could name a time.
    """


class Unavailable(CbirClientError):
    """No server answers, or it has no index ready."""


class DeadlineExceeded(CbirClientError):
    """No answer came within the timeout."""


class Cancelled(CbirClientError):
    """The call was cancelled, here or by the server."""


class Unauthenticated(CbirClientError):
    """The server requires credentials."""


class PermissionDenied(Unauthenticated):
    """The credentials do not suffice."""


class ServerError(CbirClientError):
    """The server failed."""


for _name in __all__:
    # So that tracebacks show the names that callers import.
    globals()[_name].__module__ = "cbir.client"
