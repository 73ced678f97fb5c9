"""What the page's server lets in and tells, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from images import encode, pattern, truncated_jpeg

from cbir.client import InvalidQuery
from cbir.core.errors import ConfigurationError
from cbir.web.gateway import Listening, Settings, application
from cbir.web.gateway.media_types import UNKNOWN
from cbir.web.page import assets

PAGE = {"X-Cbir-Web": "1"}


def test_a_picture_is_sent_once_and_searched_with(site: Any) -> None:
    picture = encode(pattern(1, 50), "PNG")
    status, document = site.post("/api/uploads", picture)
    assert status == 201
    for limit in (3, 5):
        wish = {"query": {"upload": document["upload"]}, "options": {"limit": limit}}
        status, answer = site.post("/api/search", json.dumps(wish).encode())
        assert status == 200
        expected = site.search(picture, limit=limit)
        assert [hit["image_id"] for hit in answer["hits"]] == [hit.image_id for hit in expected.hits]
        assert answer["hits"][0]["votes"][0]["member"] == "clip"
        assert [one["label"] for one in answer["labels"]] == [one.label for one in expected.labels]
        assert "uri" not in answer["hits"][0]
    status, headers, data = site.ask("GET", f"/api/upload?id={document['upload']}")
    assert (status, headers["content-type"], data) == (200, "image/png", picture)


def test_what_is_no_picture_is_never_shown_as_a_page(site: Any) -> None:
    page = b"<!doctype html><script>alert(1)</script>"
    name = site.post("/api/uploads", page)[1]["upload"]
    status, headers, data = site.ask("GET", f"/api/upload?id={name}")
    assert (status, headers["content-type"], data) == (200, UNKNOWN, page)
    assert headers["content-disposition"] == "attachment"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].endswith("sandbox")
    status, answer = site.post("/api/search", json.dumps({"query": {"upload": name}}).encode())
    assert status == 400
    assert answer["error"]["reason"].startswith("IMAGE_")
    assert answer["error"]["message"]


def test_images_come_as_thumbnails_and_whole(site: Any) -> None:
    status, headers, small = site.ask("GET", "/api/image?id=rings/3&size=320")
    assert status == 200
    assert headers["content-type"].startswith("image/")
    assert headers["cache-control"] == "private, max-age=3600"
    assert small == bytes(site.run(site.client.image("rings/3", 320)))
    status, headers, whole = site.ask("GET", "/api/image?id=rings/3")
    assert status == 200
    assert whole == encode(pattern(2, 3), "PNG")
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''3.png"
    assert site.ask("GET", "/api/image?id=rings/3&size=5000")[0] == 400
    status, _, data = site.ask("GET", "/api/image?id=../../etc/passwd&size=320")
    assert status == 404
    assert json.loads(data)["error"]["message"]


def test_the_page_may_do_nothing_inline_and_nowhere_else(site: Any) -> None:
    status, headers, data = site.ask("GET", "/")
    assert status == 200
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in headers
    for text in (b" style=", b" onclick", b"://"):
        assert text not in data
    assert site.ask("GET", "/", None, {"If-None-Match": headers["etag"]})[0] == 304
    for name in ("../__init__.py", "%2e%2e/assets.py", "nothing.js"):
        assert site.ask("GET", f"/page/{name}")[0] == 404


def test_no_file_of_the_page_names_another_server() -> None:
    # The namespaces of SVG look like addresses.
    found = {name: asset.data.replace(b"http://www.w3.org/2000/svg", b"") for name, asset in assets().items()}
    assert {"index.html", "main.js", "parts.css"} <= set(found)
    assert [name for name, data in found.items() if b"//" in data.replace(b"// ", b"") and b"://" in data] == []
    assert [name for name, data in found.items() if b"innerHTML" in data or b"insertAdjacentHTML" in data] == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "localhost.evil.example:8080"}, 421),
        ({"Host": "["}, 421),
        ({"Host": "photos.example"}, 200),
        ({"Host": "PHOTOS.example:8443"}, 200),
        ({"Host": "[::1]:8080"}, 200),
        ({"Host": "localhost:1", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost:1", "Origin": "null"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_only_the_page_itself_is_answered(site: Any, headers: dict[str, str], status: int) -> None:
    assert site.ask("GET", "/api/info", None, headers)[0] == status


def test_what_filters_can_name(site: Any) -> None:
    _, _, data = site.ask("GET", "/api/facets")
    found = json.loads(data)
    assert {"stripes", "checks", "rings", "blobs"} < set(found["labels"])
    assert {"shelf 0", "shelf 1"} < set(found["columns"]["shelf"])


def test_a_form_of_another_site_changes_nothing(site: Any) -> None:
    picture = encode(pattern(0, 1), "PNG")
    assert site.ask("POST", "/api/uploads", picture, {"Content-Type": "text/plain"})[0] == 403
    assert site.ask("POST", "/api/uploads", picture, {**PAGE, "Origin": "http://evil.example"})[0] == 403
    assert site.ask("POST", "/api/uploads", picture, PAGE)[0] == 201


def test_an_upload_ends_where_it_is_too_large(site: Any) -> None:
    status, document = site.post("/api/uploads", bytes(2**20 + 1))
    assert (status, document["error"]["reason"]) == (413, "TOO_LARGE")
    # One that does not say how large it is, and would never end, is cut off while it is read.
    with socket.create_connection(("127.0.0.1", site.port), 20) as connection:
        head = "POST /api/uploads HTTP/1.1\r\nHost: localhost\r\nX-Cbir-Web: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        sent = 0
        try:
            for _ in range(64):
                connection.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
                sent += 0x10000
        except OSError:
            pass
        else:
            assert b" 413 " in connection.recv(4096)
    # What the kernels hold on the way counts too.
    assert sent <= 64 * 0x10000
    assert site.post("/api/uploads", b"")[1]["error"]["reason"] == "EMPTY_IMAGE"


def test_the_servers_token_stays_here(site: Any) -> None:
    for path in ("/", "/api/info", "/page/main.js", "/api/image?id=nothing&size=320"):
        _, headers, data = site.ask("GET", path)
        assert b"a-secret-token" not in data
        assert "a-secret-token" not in str(headers)


def test_what_the_search_server_refuses_is_told_with_its_reason(site: Any) -> None:
    name = site.post("/api/uploads", truncated_jpeg())[1]["upload"]
    with pytest.raises(InvalidQuery) as caught:
        site.search(truncated_jpeg())
    direct = caught.value
    status, document = site.post("/api/search", json.dumps({"query": {"upload": name}}).encode())
    assert status == 400
    assert document["error"] == {"reason": direct.reason, "message": str(direct), "retry_after": None}
    wish = {"query": {"image_id": "rings/1"}, "options": {"weights": {"nobody": 1}}}
    assert site.post("/api/search", json.dumps(wish).encode())[1]["error"]["reason"] == "UNKNOWN_MEMBER"
    gone = site.post("/api/search", b'{"query": {"upload": "never"}}')
    assert (gone[0], gone[1]["error"]["reason"]) == (404, "UPLOAD_GONE")


class Slow:
    """A client whose searches end only when they are cancelled."""

    def __init__(self) -> None:
        self.begun, self.cancelled = threading.Event(), threading.Event()

    async def search(self, query: object, **options: object) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@pytest.fixture
def slow() -> Iterator[tuple[Slow, int]]:
    """A page before such a client, and its port."""
    client, settings = Slow(), Settings(port=0)
    listening = Listening(settings)
    app: Any = application(settings, client)  # type: ignore[arg-type]
    thread = threading.Thread(target=lambda: asyncio.run(listening.serve(app)))
    thread.start()
    yield client, listening.port
    listening.stop()
    thread.join(20)


def test_a_browser_that_leaves_ends_its_search(slow: tuple[Slow, int]) -> None:
    client, port = slow
    body = b'{"query": {"image_id": "a"}}'
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        head = f"POST /api/search HTTP/1.1\r\nHost: localhost\r\nX-Cbir-Web: 1\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert client.begun.wait(20)
        assert not client.cancelled.is_set()
    assert client.cancelled.wait(20)


def test_a_port_that_is_taken_is_told(site: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"port {site.port}"):
        Listening(Settings(port=site.port))
