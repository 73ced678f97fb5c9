"""Addresses: this machine is never asked through a proxy, others as they should be, and what cannot work says why."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from cbir.client import AsyncClient, Client, DeadlineExceeded, Unavailable
from cbir.client._channel import ChannelSettings
from cbir.client._target import check_target, hosts_of, is_this_machine, proxy_of


class Proxy:
    """An HTTP proxy that notes what it is asked for and connects to one server, or refuses."""

    def __init__(self, server: str | None) -> None:
        self._server, self.asked = server, []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    asked: list[str]

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._socket.accept()
            except OSError:
                return
            request = near.recv(4096).decode()
            self.asked.append(request.split()[1])
            if self._server is None:
                near.sendall(b"HTTP/1.0 502 Bad Gateway\r\n\r\n")
                near.close()
                continue
            host, _, port = self._server.rpartition(":")
            far = socket.create_connection((host, int(port)))
            near.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                end.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def refusing() -> Iterator[Proxy]:
    proxy = Proxy(None)
    yield proxy
    proxy.close()


def spellings(port: str) -> list[str]:
    hosts = ("localhost", "LOCALHOST", "127.0.0.1", "0.0.0.0", "dns:///localhost", "dns:localhost", "dns:///LocalHost")
    return [f"{host}:{port}" for host in (*hosts, "dns:///127.0.0.1", "ipv4:127.0.0.1", "ipv4:0.0.0.0")]


@pytest.mark.parametrize("variable", ["http_proxy", "grpc_proxy", "https_proxy"])
def test_this_machine_is_never_asked_through_a_proxy(
    server: Any, refusing: Proxy, monkeypatch: Any, variable: str
) -> None:
    monkeypatch.setenv(variable, refusing.url)
    port = server.target.rpartition(":")[2]
    for target in spellings(port):
        with Client(target, timeout=10.0, attempts=1) as client:
            assert client.search(b"image").index_version == "v1", target
    assert refusing.asked == []


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST", "localhost.", "a.localhost", "127.0.0.1", "127.8.9.1", "127.1", "0x7f000001",
        "0.0.0.0",
        "[::1]", "::1", "::", "::ffff:127.0.0.1", "0:0:0:0:0:0:0:1", "", socket.gethostname(),
        socket.gethostname().upper(),
    ],
)  # fmt: skip
def test_spellings_of_this_machine(host: str) -> None:
    assert is_this_machine(host)


@pytest.mark.parametrize(
    "host", ["example.com", "192.0.2.1", "2001:db8::1", "localhost.example.com", "notlocalhost", "8.8"]
)
def test_other_machines(host: str) -> None:
    assert not is_this_machine(host)


def test_names_in_this_machines_own_table(monkeypatch: Any) -> None:
    from cbir.client import _target

    monkeypatch.setattr(_target.Path, "read_text", lambda *_, **__: "127.0.1.1 box box.lan # here\n192.0.2.7 other\n")
    assert is_this_machine("box.lan")
    assert not is_this_machine("other")


@pytest.mark.parametrize(
    ("target", "hosts"),
    [
        ("localhost:50051", [("localhost", "50051")]),
        ("dns:///name:1", [("name", "1")]),
        ("dns://8.8.8.8/name:1", [("name", "1")]),
        ("dns:name", [("name", None)]),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", [("127.0.0.1", "1"), ("10.0.0.1", "2")]),
        ("ipv6:[::1]:1", [("::1", "1")]),
        ("ipv6:%5B::1%5D:1", [("::1", "1")]),
        ("[::1]:1", [("::1", "1")]),
        ("unix:/tmp/x", []),
        ("unix:///tmp/x", []),
        ("passthrough:///x:1", []),
    ],
)
def test_hosts_of_targets(target: str, hosts: list[tuple[str, str | None]]) -> None:
    assert hosts_of(target) == hosts
    check_target(target, secure=True)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("", "target is empty"),
        ("  ", "target is empty"),
        ("http://localhost:50051", r"target is 'http://localhost:50051', a URL: .* such as localhost:50051$"),
        ("https://user:word@example.com/path", r"a URL: give host and port alone, such as example.com:50051$"),
        ("grpc://box:7", r"a URL: give host and port alone, such as box:7$"),
        ("localhost", r"target is 'localhost', which has no port: give host and port, such as localhost:50051$"),
        ("dns:///box", r"has no port: give host and port, such as box:50051$"),
        ("127.0.0.1", r"has no port"),
        ("::1", r"an IPv6 address without brackets: write \[::1\]:50051$"),
        ("localhost:", r"the port must be a number from 1 to 65535"),
        ("localhost:port", r"the port must be a number from 1 to 65535"),
        ("localhost:0", r"the port must be"),
        ("localhost:65536", r"the port must be"),
        ("localhost:-1", r"the port must be"),
    ],
)
def test_addresses_that_cannot_work_say_why_first(target: str, why: str) -> None:
    for make in (Client, AsyncClient):
        with pytest.raises(ValueError, match=why):
            make(target)


def test_with_tls_the_port_may_be_left_out() -> None:
    settings = ChannelSettings("example.com", credentials=grpc.ssl_channel_credentials())
    assert settings.is_proxied


# Proxies for servers elsewhere


@pytest.fixture
def elsewhere(monkeypatch: Any) -> None:
    """Every server is one elsewhere, although it is here."""
    from cbir.client import _channel

    monkeypatch.setattr(_channel, "is_this_machine", lambda host: False)


@pytest.mark.usefixtures("elsewhere")
def test_a_server_elsewhere_is_asked_through_the_proxy_that_was_given(server: Any, monkeypatch: Any) -> None:
    proxy = Proxy(server.target)
    try:
        for given in (proxy.url, proxy.url.removeprefix("http://")):
            with Client("example.com:50051", proxy=given, timeout=10.0) as client:
                assert client.search(b"image").index_version == "v1"
        assert proxy.asked == ["example.com:50051"] * 2
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        with Client(server.target, proxy=False, timeout=10.0) as client:
            assert client.search(b"image").index_version == "v1"
        assert len(proxy.asked) == 2
    finally:
        proxy.close()


@pytest.mark.usefixtures("elsewhere")
def test_messages_name_the_variable(refusing: Proxy, monkeypatch: Any) -> None:
    monkeypatch.setenv("http_proxy", refusing.url.replace("//", "//user:word@"))
    with Client("example.com:50051", timeout=5.0, attempts=1) as client:
        with pytest.raises((Unavailable, DeadlineExceeded)) as caught:
            client.search(b"image")
        message = str(caught.value)
        assert f"it is asked through the proxy {refusing.url} of the variable http_proxy: unset it" in message
        assert "word" not in message.split(" (")[0]
        with pytest.raises((Unavailable, DeadlineExceeded), match="of the variable http_proxy"):
            list(client.search_stream([(1, b"image")]))
        with pytest.raises(DeadlineExceeded, match="of the variable http_proxy"):
            client.wait_ready(0.3)

    async def ask() -> None:
        async with AsyncClient("example.com:50051", timeout=5.0, attempts=1) as client:
            await client.search(b"image")

    with pytest.raises((Unavailable, DeadlineExceeded), match="of the variable http_proxy"):
        asyncio.run(ask())
    with (
        Client("example.com:50051", proxy=refusing.url, timeout=5.0, attempts=1) as client,
        pytest.raises((Unavailable, DeadlineExceeded), match="as proxy= says"),
    ):
        client.search(b"image")


def test_hosts_that_need_no_proxy() -> None:
    environment = {"https_proxy": "http://p:1", "http_proxy": "http://q:1", "no_proxy": "example.com, .lan"}
    assert proxy_of(["box.wan"], environment) == ("http://p:1", "https_proxy")
    assert proxy_of(["box.lan"], environment) is None
    assert proxy_of(["www.Example.com", "box.lan"], environment) is None
    assert proxy_of(["box.lan", "box.wan"], environment) == ("http://p:1", "https_proxy")
    assert proxy_of(["box"], {}) is None


@pytest.mark.parametrize("proxy", ["socks5://p:1", "https://p:1", "http://p:1/path", "a b", True])
def test_proxies_that_are_none(proxy: Any) -> None:
    with pytest.raises(ValueError, match="proxy is"):
        Client("localhost:1", proxy=proxy)


# Event loops


def test_an_asynchronous_client_reconnects_in_a_second_event_loop(server: Any) -> None:
    client = AsyncClient(server.target, timeout=10.0)

    async def ask() -> str:
        answers = [result async for _, result in client.search_stream([(1, b"image")])]
        assert len(answers) == 1
        assert (await client.wait_ready(5.0)).version == "v1"
        return (await client.search(b"image")).index_version

    assert [asyncio.run(ask()) for _ in range(3)] == ["v1"] * 3
    asyncio.run(client.close())
    with pytest.raises(RuntimeError, match="was closed"):
        asyncio.run(ask())
