"""What the synchronous and the asynchronous client share: everything except I/O."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from typing import Any, Unpack

import grpc

from cbir.client._channel import ChannelSettings
from cbir.client._conversion import RequestTemplate
from cbir.client._credentials import Tls, Token, check_secrecy
from cbir.client._dialogue import Dialogue
from cbir.client._errors import CbirClientError, DeadlineExceeded, Unavailable, Unsupported
from cbir.client._queries import SearchOptions
from cbir.client._retry import Budget, RetryPolicy
from cbir.client._status import from_rpc_error
from cbir.client._tracing import trace_context
from cbir.v1 import admin_pb2_grpc, search_pb2_grpc

__all__ = ["NO_SERVICE", "SERVING", "Patience", "Session"]

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
        attempts: int = 4,
        max_message_bytes: int = 64 * 2**20,
        keepalive: float = 300.0,
        credentials: grpc.ChannelCredentials | None = None,
        tls: Tls | None = None,
        token: Token | str | None = None,
        metadata: Mapping[str, str] | None = None,
        proxy: str | bool | None = None,
    ) -> None:
        """Make a client; it connects at the first call.

        Args:
            target: gRPC target: ``host:port``, ``unix:path``, ``dns:///name:port``.
            timeout: Default deadline of a call in seconds, retries included; ``math.inf`` for none.
            attempts: Most tries of a call, 1 (no retry) to 5. A call is tried again if no server could be reached, or
                after the time that an overloaded server names.
            max_message_bytes: Size in bytes of the largest message in either direction, and of the largest image.
            keepalive: Seconds between pings on an idle connection; servers may refuse less than 5 minutes.
            credentials: gRPC's own credentials, where ``tls`` does not say enough; ``None``: a plain connection.
            tls: Connect by TLS.
            token: Shows who asks; a text is short for ``Token(text)``.
            metadata: Sent with every call, such as ``{"authorization": "Bearer ..."}``; lower-case names.
            proxy: URL of the HTTP proxy for servers elsewhere, such as ``http://proxy:3128``; ``False``: none;
                ``None``: the one of the environment. A server on this machine is never asked through a proxy.

        Raises:
            ValueError: A setting out of range, an address that cannot work, or a token that would be sent in the clear
                to another machine.
            OSError: A file of ``tls`` or ``token`` cannot be read.
        """
        if tls is not None and credentials is not None:
            raise ValueError("give either tls or credentials, not both")
        self._token = Token(token) if isinstance(token, str) else token
        check_secrecy(target, self._token, tls is not None or credentials is not None)
        self._settings = ChannelSettings(
            target=target,
            timeout=timeout,
            retry=RetryPolicy(attempts),
            max_message_bytes=max_message_bytes,
            keepalive=keepalive,
            credentials=tls.credentials() if tls else credentials,
            server_name=tls.server_name if tls else None,
            metadata=dict(metadata or {}),
            proxy=proxy,
        )
        self._address = self._settings.address
        self._plain_metadata = tuple(self._settings.metadata.items())
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

    def _budget(self, timeout: float | None) -> Budget:
        self._check_open()
        return Budget(self._seconds(timeout), self._settings.retry, self._address)

    def _template(self, **options: Unpack[SearchOptions]) -> RequestTemplate:
        return RequestTemplate(self._settings.max_message_bytes, **options)

    def _dialogue(self, timeout: float | None, window: int) -> Dialogue[Any]:
        self._check_open()
        if window < 1:
            raise ValueError(f"window is {window}: give the number of queries that may be on their way, at least 1")
        return Dialogue(self._settings.retry, self._seconds(timeout), self._address)

    def _seconds(self, timeout: float | None) -> float:
        return self._settings.timeout if timeout is None else timeout


class Patience:
    """Waiting for a server that is still starting or loading.

    Attributes:
        ask_health: Whether the server has a health service to ask.
    """

    def __init__(self, timeout: float, target: str) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}: give a positive number of seconds, or math.inf to wait for ever")
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
            if not isinstance(failure, (Unavailable, DeadlineExceeded)):
                raise failure from error
        pause = next(self._pauses)
        if time.monotonic() + pause >= self._end:
            raise DeadlineExceeded(f"{self._target} was not ready within {self._timeout:g} s: {failure}") from error
        return pause
