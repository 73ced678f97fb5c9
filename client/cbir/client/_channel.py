"""The settings of a connection: message sizes, keepalive and retries, all of them bounded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc

from cbir.client._retry import RetryPolicy
from cbir.client._target import Address, check_target, hosts_of, is_this_machine, proxy_of

__all__ = ["ChannelSettings"]

#: Methods that gRPC itself may retry. SearchStream is retried by the client, which knows what is unanswered;
#: ReloadIndex is not retried, because the second answer would say that nothing changed.
_REPEATABLE = ("Search", "GetIndexInfo", "GetImage")


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """How to reach a server.

    Attributes:
        target: gRPC target: ``host:port``, ``unix:path``, ``dns:///name:port``.
        timeout: Default deadline of a call in seconds, retries included.
        retry: When a call is tried again.
        max_message_bytes: Largest message in either direction, in bytes.
        keepalive: Seconds between pings on an idle connection. By default servers close connections of clients that
            ping more often than every 5 minutes.
        credentials: TLS credentials; None for a plaintext connection.
        server_name: Name that the server's certificate must be of; None for the target's.
        metadata: Sent with every call; names in lower case.
        proxy: URL of the HTTP proxy for servers elsewhere; False: none; None: as the environment says. A server on
            this machine is never asked through a proxy.
    """

    target: str = "localhost:50051"
    timeout: float = 10.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_message_bytes: int = 64 * 2**20
    keepalive: float = 300.0
    credentials: grpc.ChannelCredentials | None = None
    server_name: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    proxy: str | bool | None = None

    def __post_init__(self) -> None:
        check_target(self.target, secure=self.credentials is not None)
        if self.proxy is True or (isinstance(self.proxy, str) and not re.fullmatch(r"(http://)?[^/\s]*/?", self.proxy)):
            raise ValueError(
                f"proxy is {self.proxy!r}: give the URL of an HTTP proxy, such as http://proxy:3128, or False"
            )
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout}: give a positive number of seconds")
        if not self.max_message_bytes > 0:
            raise ValueError(f"max_message_bytes is {self.max_message_bytes}: give a positive number of bytes")
        if not self.keepalive > 0:
            raise ValueError(f"keepalive is {self.keepalive}: give a positive number of seconds")

    @property
    def is_proxied(self) -> bool:
        """Whether an HTTP proxy may be used: for servers elsewhere, unless it was said that none should be."""
        hosts = hosts_of(self.target)
        return self.proxy is not False and self.proxy != "" and not all(is_this_machine(host) for host, _ in hosts)

    @property
    def address(self) -> Address:
        """The target as messages name it, with the proxy that may be why it is not reached."""
        if not self.is_proxied:
            return Address(self.target)
        if self.proxy:
            return Address.of(self.target, f"it is asked through the proxy {_shown(_url(self.proxy))}, as proxy= says")
        found = proxy_of([host for host, _ in hosts_of(self.target)])
        if found is None:
            return Address(self.target)
        url, variable = found
        hint = f"it is asked through the proxy {_shown(url)} of the variable {variable}: unset it, name the host in "
        return Address.of(self.target, hint + "no_proxy, or make the client with proxy=False")

    def options(self) -> list[tuple[str, int | str]]:
        """Return gRPC's channel arguments."""
        options: list[tuple[str, int | str]] = [
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.keepalive_time_ms", int(min(self.keepalive * 1000, 2**31 - 1))),
            ("grpc.keepalive_timeout_ms", 20_000),
            # By default gRPC waits up to two minutes before it tries to connect again.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 5_000),
            # Otherwise all clients of this process would share one connection.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", int(self.retry.attempts > 1)),
            # gRPC can only retry a request that it has kept; by default it keeps 256 KiB, less than most photos.
            ("grpc.per_rpc_retry_buffer_size", self.max_message_bytes),
        ]
        if self.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        if not self.is_proxied:
            options.append(("grpc.enable_http_proxy", 0))
        elif self.proxy:
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
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        return json.dumps({"methodConfig": [{"name": methods, "retryPolicy": policy}]})


def _url(proxy: str | bool | None) -> str:
    text = str(proxy)
    return text if "://" in text else f"http://{text}"


def _shown(url: str) -> str:
    """Leave name and password out of a proxy's URL."""
    return re.sub(r"//[^/@]*@", "//", url)
