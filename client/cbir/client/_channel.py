"""The settings of a connection: message sizes, keepalive and retries, all bounded; the trace that it goes on with."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from cbir.client._options import Compression, Keepalive, Limits, Proxy, number
from cbir.client._retry import Retry
from cbir.client._target import Address, check_target, hosts_of, is_this_machine, proxy_of

__all__ = ["ChannelSettings", "trace_context"]

#: Methods that gRPC itself may retry. SearchStream is retried by the client, which knows what is unanswered;
#: ReloadIndex is not retried, because the second answer would say that nothing changed.
_REPEATABLE = ("Search", "GetIndexInfo", "GetImage", "ListImages", "GetFacets")


#: Largest value of a channel argument.
_INT_MAX = 2**31 - 1
_COMPRESSIONS = {
    Compression.NONE: grpc.Compression.NoCompression,
    Compression.DEFLATE: grpc.Compression.Deflate,
    Compression.GZIP: grpc.Compression.Gzip,
}


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """How to reach a server.

    Attributes:
        target: gRPC target: ``host:port``, ``unix:path``, ``dns:///name:port``.
        timeout: Default deadline of a call in seconds, retries included.
        retry: When a call is tried again.
        limits: The largest messages.
        keepalive: Pings on an idle connection.
        compression: Of requests.
        credentials: TLS credentials; None for a plaintext connection.
        server_name: Name that the server's certificate must be of; None for the target's.
        metadata: Sent with every call; names in lower case.
        proxy: The proxy for servers elsewhere; None: as the environment says.
    """

    target: str = "localhost:50051"
    timeout: float = 10.0
    retry: Retry = field(default_factory=Retry)
    limits: Limits = field(default_factory=Limits)
    keepalive: Keepalive = field(default_factory=Keepalive)
    compression: Compression = Compression.NONE
    credentials: grpc.ChannelCredentials | None = None
    server_name: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    proxy: Proxy | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.target, str):
            raise TypeError(f"target is {self.target!r}: give the server's address, such as localhost:50051")
        check_target(self.target, secure=self.credentials is not None)
        number("timeout", self.timeout, "a positive number of seconds, or math.inf for no deadline", above=0)

    @property
    def is_proxied(self) -> bool:
        """Whether an HTTP proxy may be used: for servers elsewhere, unless it was said that none should be."""
        hosts = hosts_of(self.target)
        wanted = self.proxy is None or self.proxy.url is not None
        return wanted and not all(is_this_machine(host) for host, _ in hosts)

    @property
    def address(self) -> Address:
        """The target as messages name it, with the proxy that may be why it is not reached."""
        secure = self.credentials is not None
        if not self.is_proxied:
            return Address.of(self.target, secure=secure)
        if self.proxy is not None:
            told = f"it is asked through the proxy {_shown(_url(self.proxy))}, as proxy= says"
            return Address.of(self.target, told, secure=secure)
        found = proxy_of([host for host, _ in hosts_of(self.target)])
        if found is None:
            return Address.of(self.target, secure=secure)
        url, variable = found
        hint = f"it is asked through the proxy {_shown(url)} of the variable {variable}: unset it, name the host in "
        return Address.of(self.target, hint + "no_proxy, or make the client with proxy=False", secure=secure)

    @property
    def channel_compression(self) -> Any:
        """As gRPC's channels take it."""
        return _COMPRESSIONS[self.compression]

    def options(self) -> list[tuple[str, int | str]]:
        """Return gRPC's channel arguments."""
        options: list[tuple[str, int | str]] = [
            ("grpc.max_send_message_length", min(self.limits.sent_bytes, _INT_MAX)),
            ("grpc.max_receive_message_length", min(self.limits.received_bytes, _INT_MAX)),
            ("grpc.keepalive_time_ms", int(min(self.keepalive.interval * 1000, _INT_MAX))),
            ("grpc.keepalive_timeout_ms", int(min(self.keepalive.timeout * 1000, _INT_MAX))),
            ("grpc.keepalive_permit_without_calls", int(self.keepalive.idle)),
            # By default gRPC waits up to two minutes before it tries to connect again.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 5_000),
            # Otherwise all clients of this process would share one connection.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", int(self.retry.attempts > 1)),
            # gRPC can only retry a request that it has kept; by default it keeps 256 KiB, less than most photos.
            ("grpc.per_rpc_retry_buffer_size", min(self.limits.sent_bytes, _INT_MAX)),
        ]
        if self.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        if not self.is_proxied:
            options.append(("grpc.enable_http_proxy", 0))
        elif self.proxy is not None:
            options.append(("grpc.http_proxy", _url(self.proxy)))
        if self.retry.attempts > 1:
            options.append(("grpc.service_config", self._service_config()))
        return options

    def _service_config(self) -> str:
        methods = [{"service": "cbir.v1.SearchService", "method": name} for name in _REPEATABLE]
        policy = {
            "maxAttempts": self.retry.attempts,
            "initialBackoff": f"{self.retry.first_pause}s",
            "maxBackoff": f"{self.retry.longest_pause}s",
            "backoffMultiplier": 2,
            # CANCELLED: a flooded server's transport drops calls so. gRPC repeats none that was cancelled here.
            "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
        }
        return json.dumps({"methodConfig": [{"name": methods, "retryPolicy": policy}]})


def _url(proxy: Proxy) -> str:
    text = str(proxy.url)
    return text if "://" in text else f"http://{text}"


def _shown(url: str) -> str:
    """Leave name and password out of a proxy's URL."""
    return re.sub(r"//[^/@]*@", "//", url)


def trace_context() -> tuple[tuple[str, str], ...]:
    """Metadata that names the span that is current here (W3C Trace Context); nothing where there is none.

    The client neither needs OpenTelemetry nor loads it: a program that has a span has loaded it.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((name.lower(), value) for name, value in carrier.items())
