"""What the synchronous and the asynchronous client share: everything except I/O."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from typing import Any, TypeVar, Unpack

import grpc

from cbir.client._channel import ChannelSettings, trace_context
from cbir.client._conversion import NO_PICTURES
from cbir.client._credentials import Tls, Token, check_secrecy
from cbir.client._errors import CbirClientError, DeadlineExceeded, Overloaded, Unavailable, Unsupported
from cbir.client._options import Compression, Keepalive, Limits, Proxy, checked, number
from cbir.client._queries import SearchOptions
from cbir.client._requests import RequestTemplate
from cbir.client._retry import Budget, Retry
from cbir.client._status import from_rpc_error
from cbir.client._stream.dialogue import Dialogue
from cbir.v1 import admin_pb2_grpc, search_pb2_grpc

__all__ = ["NO_SERVICE", "SERVING", "Patience", "Session", "Sight"]

T = TypeVar("T")

# The standard health service without its package: the two messages needed are constants.
_HEALTH_METHOD = "/grpc.health.v1.Health/Check"
#: HealthCheckRequest for the server as a whole.
NO_SERVICE = b""
#: HealthCheckResponse { status: SERVING }.
SERVING = b"\x08\x01"


class Session:
    """The settings of one client, and what each of its calls needs to begin."""

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        timeout: float = 10.0,
        tls: Tls | None = None,
        token: Token | str | None = None,
        retry: Retry | None = None,
        keepalive: Keepalive | float | None = None,
        limits: Limits | None = None,
        compression: Compression | str = Compression.NONE,
        proxy: Proxy | str | bool | None = None,
        metadata: Mapping[str, str] | None = None,
        downscale: bool = True,
        attempts: int | None = None,
        max_message_bytes: int | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Make a client; it connects at the first call.

        Args:
            target: gRPC target: ``host:port``, ``unix:path``, ``dns:///name:port``.
            timeout: Default deadline of a call in seconds, retries included; ``math.inf`` for none.
            tls: Connect by TLS; with a certificate of its own, by mutual TLS.
            token: Shows who asks; a text is short for ``Token(text)``.
            retry: When a call is tried again; :class:`Retry` has the defaults.
            keepalive: Pings on an idle connection; a number is short for ``Keepalive(number)``.
            limits: The largest messages, and so the largest images.
            compression: Of requests: ``none``, ``deflate`` or ``gzip``.
            proxy: The HTTP proxy for servers elsewhere; its URL is short for ``Proxy(URL)``, ``False`` for
                ``Proxy(None)``; ``None``: the one of the environment.
            metadata: Sent with every call, such as ``{"x-request-id": "photo-7"}``; lower-case names.
            downscale: Large images are shrunk before they are sent, to the pixels that the server can use (it says how
                many; needs Pillow). Boxes in results are in pixels of the original nevertheless.
            attempts: Short for ``Retry(attempts)``.
            max_message_bytes: Short for ``Limits(number, number)``.
            credentials: gRPC's own credentials, where ``tls`` does not say enough; ``None``: a plain connection.

        Raises:
            ValueError: A setting out of range, an address that cannot work, or a token that would be sent in the clear
                to another machine.
            TypeError: A setting of another type.
            OSError: A file of ``tls`` or ``token`` cannot be read.
        """
        if tls is not None and credentials is not None:
            raise ValueError("give either tls or credentials, not both")
        if retry is not None and attempts is not None:
            raise ValueError("give either retry or attempts, not both")
        if limits is not None and max_message_bytes is not None:
            raise ValueError("give either limits or max_message_bytes, not both")
        if max_message_bytes is not None:
            number("max_message_bytes", max_message_bytes, "a positive number of bytes", above=0)
        self._token = Token(token) if isinstance(token, str) else _of("token", token, Token)
        _of("tls", tls, Tls)
        check_secrecy(str(target), self._token, tls is not None or credentials is not None)
        self._settings = ChannelSettings(
            target=target,
            timeout=timeout,
            retry=_of("retry", retry, Retry) or (Retry() if attempts is None else Retry(attempts)),
            limits=_of("limits", limits, Limits)
            or (Limits() if max_message_bytes is None else Limits(max_message_bytes, max_message_bytes)),
            keepalive=_keepalive(keepalive),
            compression=_compression(compression),
            credentials=tls.credentials() if tls else credentials,
            server_name=tls.server_name if tls else None,
            metadata=checked(metadata),
            proxy=_proxy(proxy),
        )
        self._address = self._settings.address
        self._plain_metadata = tuple(self._settings.metadata.items())
        self._sight = Sight(downscale)
        #: To connect once more, for the pictures of results.
        self._given: dict[str, Any] = {
            "target": target, "timeout": timeout, "tls": tls, "token": self._token, "retry": self._settings.retry,
            "limits": self._settings.limits, "proxy": self._settings.proxy, "metadata": self._settings.metadata,
            "credentials": credentials,
        }  # fmt: skip
        self._pictures = NO_PICTURES
        self._closed = False
        self._start()

    def _start(self) -> None:
        """Prepare what this kind of client needs before its first call."""

    def _bind(self, channel: Any) -> None:
        """Start to use a channel (of grpc or grpc.aio)."""
        self._channel = channel
        self._searching = search_pb2_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]
        self._admin = admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]
        self._health = channel.unary_unary(_HEALTH_METHOD)

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """What is sent with every call: a token in a file is read anew, and a trace that is under way goes on."""
        token = () if self._token is None else (self._token.header(),)
        return (*self._plain_metadata, *token, *trace_context())

    @property
    def target(self) -> str:
        """The server's address."""
        return self._settings.target

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target}{', closed' if self._closed else ''}>"

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"this client of {self.target} was closed: make another one")

    def _is_closed(self) -> bool:
        return self._closed

    def _budget(self, timeout: float | None) -> Budget:
        self._check_open()
        return Budget(self._seconds(timeout), self._settings.retry, self._address, self._is_closed)

    def _template(self, **options: Unpack[SearchOptions]) -> RequestTemplate:
        return RequestTemplate(self._settings.limits.sent_bytes, **options)

    def _dialogue(self, timeout: float | None, window: int) -> Dialogue[Any]:
        self._check_open()
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ValueError(f"window is {window!r}: give the number of queries that may be on their way, at least 1")
        seconds = self._seconds(timeout)
        number("timeout", seconds, "a positive number of seconds, or math.inf to wait for ever", above=0)
        return Dialogue(self._settings.retry, seconds, self._address, self._is_closed, self._pictures)

    def _seconds(self, timeout: float | None) -> float:
        return self._settings.timeout if timeout is None else timeout


class Sight:
    """How many pixels of a query image the server can use, as far as it has said so.

    Attributes:
        unknown: Whether it should be asked before an image is shrunk.
        side: Length in pixels of the shorter side to which images may be shrunk; None: not at all.
    """

    def __init__(self, wanted: bool) -> None:
        self.unknown, self._version, self._wanted = wanted, "", wanted
        self.side: int | None = None

    def told(self, side: int, version: str) -> None:
        """The server has said it, of an index version; 0: it does not say."""
        self.unknown, self.side, self._version = False, side or None, version

    def answered(self, version: str) -> None:
        """An index version has answered; if it is another one, what was said may no longer hold."""
        if not self.unknown and version != self._version:
            self.unknown, self._version = self._wanted, version


def _of(name: str, value: T, kind: type[Any]) -> T:
    """Check that an option is of its type, or None."""
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}: give a {kind.__name__}(...) of cbir.client")
    return value


def _keepalive(given: Keepalive | float | None) -> Keepalive:
    if given is None:
        return Keepalive()
    return given if isinstance(given, Keepalive) else Keepalive(given)


def _compression(given: Compression | str) -> Compression:
    try:
        return Compression(given)
    except ValueError:
        raise ValueError(f"compression is {given!r}: choose one of {', '.join(Compression)}") from None


def _proxy(given: Proxy | str | bool | None) -> Proxy | None:
    if given is None or isinstance(given, Proxy):
        return given
    # An empty text is what a shell gives for "none".
    return Proxy(None if given is False or given == "" else given)  # type: ignore[arg-type]


class Patience:
    """Waiting for a server that is still starting or loading.

    Attributes:
        ask_health: Whether the server has a health service to ask.
    """

    def __init__(self, timeout: float, target: str) -> None:
        number("timeout", timeout, "a positive number of seconds, or math.inf to wait for ever", above=0)
        self.ask_health = True
        self._timeout = timeout
        self._end = time.monotonic() + timeout
        self._target = target
        self._pauses = itertools.chain((0.05, 0.1, 0.2), itertools.repeat(0.5))

    def left(self) -> float | None:
        """Seconds left in gRPC's form: None for no deadline."""
        return None if math.isinf(self._end) else max(self._end - time.monotonic(), 0.0)

    def pause(self, error: grpc.RpcError | None) -> float:
        """Return the seconds to wait before asking again; ``error`` is None if the server said that it is not ready.

        Raises:
            DeadlineExceeded: The time is up.
            CbirClientError: An error that waiting does not cure.
        """
        failure: CbirClientError = Unavailable("it answers, but is not serving yet")
        if error is not None:
            failure = from_rpc_error(error, self._target)
            if isinstance(failure, Unsupported) and self.ask_health:
                self.ask_health = False
                return 0.0
            if not isinstance(failure, (Unavailable, Overloaded, DeadlineExceeded)):
                raise failure from error
        pause = next(self._pauses)
        if time.monotonic() + pause >= self._end:
            raise DeadlineExceeded(f"{self._target} was not ready within {self._timeout:g} s: {failure}") from error
        return pause
