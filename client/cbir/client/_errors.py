"""The client's one exception tree.

CbirClientError
├── InvalidQuery          the query cannot be used: bad image, bad option, unreadable file
│   └── TooLarge          ... because it is larger than the server or this client takes
├── NotFound              no image or version has that id
├── FailedPrecondition    the server is not in a state for this (a version that cannot be loaded)
├── Unsupported           the server does not offer the call
├── Overloaded            the server has too much to do; ``retry_after`` says when to come back
├── Unavailable           no server answers, or it has no index ready
├── DeadlineExceeded      no answer within the timeout
├── Cancelled             the call was cancelled, here or by the server
├── Unauthenticated       the server wants credentials
│   └── PermissionDenied  ... and those given do not suffice
└── ServerError           the server failed

The names follow gRPC's codes, which is where they come from, hence no "Error" at the end of each.
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
    """One field of the request that the server refused.

    Attributes:
        field: The path of the field, such as ``options.limit``.
        description: What is wrong with it.
    """

    field: str
    description: str


class CbirClientError(Exception):
    """Root of everything the client raises.

    Attributes:
        reason: Stable UPPER_SNAKE name for programs, such as ``IMAGE_TRUNCATED``; empty when the server gave none.
        metadata: Further facts by name.
        violations: The fields that were refused.
        retry_after: Seconds after which the server asks to be tried again, where it says so.
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
    """The query or the answer is larger than the server or this client takes."""


class NotFound(CbirClientError):
    """No image or version has that id."""


class FailedPrecondition(CbirClientError):
    """The server is not in a state for this call."""


class Unsupported(CbirClientError):
    """The server does not offer the call."""


class Overloaded(CbirClientError):
    """The server has too much to do; the client has waited ``retry_after`` and tried again while time was left."""


class Unavailable(CbirClientError):
    """No server answers, or it has no index ready."""


class DeadlineExceeded(CbirClientError):
    """No answer came within the timeout."""


class Cancelled(CbirClientError):
    """The call was cancelled, here or by the server."""


class Unauthenticated(CbirClientError):
    """The server wants credentials."""


class PermissionDenied(Unauthenticated):
    """The credentials do not suffice."""


class ServerError(CbirClientError):
    """The server failed."""


for _name in __all__:
    # Tracebacks show the name that callers import.
    globals()[_name].__module__ = "cbir.client"
