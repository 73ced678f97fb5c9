"""Why a request is not answered, as the page reads it."""

from __future__ import annotations

import math

from starlette.responses import JSONResponse

from cbir.client import (
    Cancelled,
    CbirClientError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidQuery,
    NotFound,
    Overloaded,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

__all__ = ["Refusal", "failure", "refused"]

#: The first that fits counts.  What the search server thinks of this gateway's own credentials is no matter of the
#: browser's: 401 would make it ask its user for a password.
_STATUS: tuple[tuple[type[CbirClientError], int], ...] = (
    (TooLarge, 413),
    (InvalidQuery, 400),
    (NotFound, 404),
    (FailedPrecondition, 409),
    (Overloaded, 429),
    (Unavailable, 503),
    (DeadlineExceeded, 504),
    (Cancelled, 503),
    (Unauthenticated, 502),
)


class Refusal(Exception):  # noqa: N818 - named as what it is, not an error of ours
    """A request that the gateway itself refuses.

    Attributes:
        status: Of HTTP.
        reason: Stable UPPER_SNAKE name for programs.
        retry_after: Seconds after which to try again; None where that is of no use.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.retry_after = status, reason, retry_after


def refused(refusal: Refusal) -> JSONResponse:
    """The answer to a request that the gateway refuses."""
    return _answer(refusal.status, refusal.reason, str(refusal), refusal.retry_after)


def failure(error: CbirClientError) -> JSONResponse:
    """The answer where the search server gave none: its own reason and sentence."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 502)
    reason = error.reason or ("SEARCH_SERVER_UNAVAILABLE" if isinstance(error, Unavailable) else "")
    return _answer(status, reason, str(error), error.retry_after)


def _answer(status: int, reason: str, message: str, retry_after: float | None) -> JSONResponse:
    headers = {"cache-control": "no-store"}
    if retry_after is not None:
        headers["retry-after"] = str(math.ceil(retry_after))
    error = {"reason": reason, "message": message, "retry_after": retry_after}
    return JSONResponse({"error": error}, status, headers)
