"""Translation of gRPC's errors into the client's exceptions; it happens nowhere else."""

from __future__ import annotations

import re
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from cbir.client import _errors as errors

__all__ = ["from_rpc_error", "from_status"]

_KINDS: dict[Any, type[errors.CbirClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidQuery,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidQuery,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unsupported,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
}
#: Message of grpc.aio when a call had just ended as a message was to be sent. The server's status is lost, but will
#: show when the call is tried again.
_LOST_STATUS = "Internal error from Core"
#: What gRPC says of a connection on which the two sides do not understand each other; by TLS or not, None: either.
_HANDSHAKES: tuple[tuple[str, bool | None, str], ...] = (
    (
        "WRONG_VERSION_NUMBER",
        True,
        "{target} answers, but not by TLS: leave tls= out, or give the port at which the server takes TLS",
    ),
    (
        "certificate has expired|CERTIFICATE_EXPIRED",
        True,
        "the certificate of {target} has expired: tell whoever runs the server, and look at this machine's clock",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        True,
        "{target} shows a certificate that no authority known here has signed: give tls=Tls(ca=FILE) with the server's",
    ),
    (
        "Hostname Verification Check failed",
        True,
        "{target} shows a certificate of another name: give tls=Tls(server_name=NAME) with the name that it is of",
    ),
    (
        "failed to connect.*(Socket closed|reset by peer|CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE)",
        True,
        "{target} closed the connection at once: it may ask for a certificate, which "
        "tls=Tls(certificate=FILE, key=FILE) shows",
    ),
    (
        "Failed parsing HTTP/2|http2 exception|Trying to connect an http1.x server",
        None,
        "{target} answers, but is no gRPC server: give the port at which 'cbir serve' listens",
    ),
    (
        "failed to connect.*(Socket closed|reset by peer)",
        False,
        "{target} closed the connection at once: it may want TLS, which tls=Tls() asks for, or be no gRPC server",
    ),
)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def from_rpc_error(error: grpc.RpcError, target: str, closed: bool = False) -> errors.CbirClientError:
    """Translate the failure of a call to ``target``; raise the result ``from`` the original error.

    Args:
        closed: Whether this client was closed, which cancels its calls.
    """
    if error.code() == grpc.StatusCode.INTERNAL and error.details() == _LOST_STATUS:
        return errors.Unavailable(f"the connection to {target} broke while a query was being sent")
    status = status_pb2.Status(code=error.code().value[0], message=error.details() or "")
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            try:
                status.MergeFromString(value)
            except DecodeError:
                # Details that were cut short, by a proxy for instance; code and message still say most of it.
                continue
    if error.code() == grpc.StatusCode.CANCELLED and not (status.details or closed):
        # Nobody here cancelled it, and the server's own code says why it does: a transport that has more calls than it
        # can hold drops some of them so.
        return errors.Overloaded(f"{target} dropped the call before it looked at it: send fewer at a time, or later")
    return from_status(status, target)


def from_status(status: status_pb2.Status, target: str) -> errors.CbirClientError:
    """Translate a ``google.rpc.Status`` of a call or of one query in a stream; ``target`` is named in messages."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info = _detail(status, error_details_pb2.ErrorInfo()) or error_details_pb2.ErrorInfo()
    retry = _detail(status, error_details_pb2.RetryInfo())
    bad = _detail(status, error_details_pb2.BadRequest())
    kind = _KINDS.get(code, errors.ServerError)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        # RESOURCE_EXHAUSTED means both "try again later" and "too large". Only the former has RetryInfo; gRPC's own
        # size check gives no details.
        sized = bool(info.reason) or "larger than max" in status.message
        kind = errors.TooLarge if retry is None and sized else errors.Overloaded
    return kind(
        _message(code, status.message, bool(info.reason), target),
        reason=info.reason,
        metadata=info.metadata,
        violations=tuple(errors.FieldViolation(v.field, v.description) for v in bad.field_violations) if bad else (),
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9 if retry else None,
    )


def _detail(status: status_pb2.Status, kind: Any) -> Any:
    """Return the first detail of this kind; None if there is none."""
    packed: any_pb2.Any
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            try:
                if packed.Unpack(kind):
                    return kind
            except DecodeError:
                return None
    return None


def _message(code: Any, text: str, explained: bool, target: str) -> str:
    """The server's own sentence, or gRPC's message completed by a way out."""
    if explained and text:
        return text
    text = text or "no details were given"
    hint = getattr(target, "hint", "")
    if code == grpc.StatusCode.UNAVAILABLE:
        return _unreachable(text, target, hint)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED and hint:
        return f"{target} did not answer in time; {hint}, or raise the timeout ({text})"
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{target} did not answer in time: raise the timeout or look at the server's load ({text})"
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return f"the server at {target} does not offer this call: is it an Ensemble-CBIR server of this age? ({text})"
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        return f"a message is larger than {target} or this client takes: send a smaller image ({text})"
    if code in _KINDS:
        return text
    return f"the server at {target} failed with {code.name}: look at its log ({text})"


def _unreachable(text: str, target: str, hint: str) -> str:
    """Why there is no connection, as far as gRPC's words tell."""
    secure = getattr(target, "secure", False)
    for mark, applies, sentence in _HANDSHAKES:
        if applies in (None, secure) and re.search(mark, text):
            return f"{sentence.format(target=target)} ({text})"
    if hint:
        return f"no server answers at {target}; {hint} ({text})"
    return f"no server answers at {target}: start one with 'cbir serve INDEX' or correct the address ({text})"
