"""A connection on which the two sides do not understand each other: what is wrong is told, and the way out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from certificates import Authority, Pair

from cbir.client import Tls, Unavailable


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "authority")


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("server")


def credentials(pair: Pair, authority: Authority | None = None) -> grpc.ServerCredentials:
    keys = [(pair.key.read_bytes(), pair.certificate.read_bytes())]
    return grpc.ssl_server_credentials(keys, authority and authority.file.read_bytes(), authority is not None)


def told(make_client: Any, target: str, **settings: Any) -> str:
    with make_client(target, timeout=10.0, attempts=1, **settings) as client, pytest.raises(Unavailable) as caught:
        client.index_info()
    return str(caught.value)


def test_tls_at_a_plain_server(server: Any, make_client: Any, authority: Authority) -> None:
    sentence = told(make_client, server.target, tls=Tls(authority.file))
    assert "answers, but not by TLS: leave tls= out" in sentence
    assert "no server answers" not in sentence


def test_no_tls_at_a_server_that_wants_it(start_server: Any, make_client: Any, pair: Pair) -> None:
    server = start_server(credentials=credentials(pair))
    assert "it may want TLS, which tls=Tls() asks for" in told(make_client, server.target)


def test_a_certificate_that_nobody_known_has_signed(
    start_server: Any, make_client: Any, pair: Pair, tmp_path: Any
) -> None:
    server = start_server(credentials=credentials(pair))
    stranger = Authority(tmp_path, "stranger")
    assert "give tls=Tls(ca=FILE)" in told(make_client, server.target, tls=Tls(stranger.file))


def test_a_certificate_of_another_name(start_server: Any, make_client: Any, authority: Authority, pair: Pair) -> None:
    server = start_server(credentials=credentials(pair))
    sentence = told(make_client, server.target, tls=Tls(authority.file, server_name="elsewhere"))
    assert "certificate of another name" in sentence


def test_no_certificate_where_one_is_asked_for(
    start_server: Any, make_client: Any, authority: Authority, pair: Pair
) -> None:
    server = start_server(credentials=credentials(pair, authority))
    assert "may ask for a certificate" in told(make_client, server.target, tls=Tls(authority.file))
    own = authority.issue("client")
    with make_client(server.target, tls=Tls(authority.file, own.certificate, own.key)) as client:
        assert client.index_info().version == "v1"


class Silent(BaseHTTPRequestHandler):
    """A web server without a log."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the library
        """Say nothing."""


@pytest.fixture
def web_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_web_server_is_none_of_ours(make_client: Any, web_server: str) -> None:
    assert "answers, but is no gRPC server" in told(make_client, web_server)


def test_nobody_there_is_still_nobody_there(make_client: Any, no_server: str) -> None:
    assert "no server answers at" in told(make_client, no_server)
