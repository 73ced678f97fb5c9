"""Sources on other machines: S3 by moto's server on loopback, HTTP by a server that is not always honest."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import encode, pattern
from s3_server import s3_bucket

from cbir.core.errors import ImageError, SourceError
from cbir.core.files import read_remote
from cbir.core.files.remote import check_address
from cbir.indexer.sources import open_sources

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")


def picture(number: int) -> bytes:
    return encode(pattern(number % 4, number), "PNG")


def tar_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """A bucket of an S3 server, and a file system to fill it with."""
    with s3_bucket("bucket") as files:
        yield files


def test_a_folder_in_a_bucket(store: Any) -> None:
    for number in range(3):
        store.pipe(f"bucket/pictures/class{number % 2}/{number}.png", picture(number))
    store.pipe("bucket/pictures/notes.txt", b"words")
    store.pipe("bucket/elsewhere/x.png", picture(9))
    sources = open_sources(["s3://bucket/pictures"])
    images = {image.id: image for image in sources.scan()}
    assert {name: image.label for name, image in images.items()} == {
        "class0/0.png": "class0", "class1/1.png": "class1", "class0/2.png": "class0"
    }  # fmt: skip
    assert sources.read(images["class1/1.png"]) == picture(1)
    # The stamp tells a change without reading.
    store.pipe("bucket/pictures/class1/1.png", picture(5))
    later = {image.id: image for image in open_sources(["s3://bucket/pictures"]).scan()}
    assert [name for name in images if images[name].stamp != later[name].stamp] == ["class1/1.png"]
    with pytest.raises(ImageError, match="more than the limit"):
        read_remote("s3://bucket/pictures/class0/0.png", max_bytes=10)
    with pytest.raises(ImageError, match="no such file") as caught:
        read_remote("s3://bucket/pictures/gone.png")
    assert caught.value.reason == "IMAGE_MISSING"


def test_shards_and_tables_in_a_bucket(store: Any) -> None:
    for number in range(2):
        data = tar_bytes({f"{k}.png": picture(4 * number + k) for k in range(4)} | {"0.cls": b"cat"})
        store.pipe(f"bucket/w/data-{number:03}.tar", data)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [picture(k) for k in range(5)]}), buffer, row_group_size=2)
    store.pipe("bucket/t/part.parquet", buffer.getvalue())
    for name in ("s3://bucket/w/data-{000..001}.tar", "s3://bucket/w"):
        sources = open_sources([name])
        images = {image.id: image for image in sources.scan()}
        assert len(images) == 8
        assert images["data-001/0.png"].label == "cat"
        assert sources.read(images["data-001/3.png"]) == picture(7)
        assert open_sources([name]).same_as(sources.read_parts())
    sources = open_sources(["s3://bucket/t/part.parquet"])
    assert [sources.read(image) for image in sources.scan()] == [picture(k) for k in range(5)]


def test_what_no_url_may_say() -> None:
    for name in (
        "s3://",
        "http://",
        "s3://b/x\\..\\y",
        "https://host/dir",
        "s3://b/a.csv",
        "simplecache::s3://b/x.tar",
    ):
        with pytest.raises(SourceError):
            open_sources([name]).scan()


class Server(BaseHTTPRequestHandler):
    """Serves files by ranges; some paths misbehave."""

    files: ClassVar[dict[str, bytes]] = {}
    failures: ClassVar[dict[str, int]] = {}
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.failures.get(self.path, 0):
            self.failures[self.path] -= 1
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/endless.png":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            except OSError:
                return
        data = self.files.get(self.path)
        if data is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first, last = 0, len(data) - 1
        if (asked := self.headers.get("Range")) and not self.path.startswith("/whole"):
            low, _, high = asked.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high or last), last)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[first : last + 1])

    def log_message(self, *told: object) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_archive_by_http(web: str) -> None:
    Server.files["/x.tar"] = tar_bytes({f"cat/{k}.png": picture(k) for k in range(3)})
    sources = open_sources([f"{web}/x.tar"])
    images = list(sources.scan())
    assert [image.id for image in images] == ["cat/0.png", "cat/1.png", "cat/2.png"]
    assert [sources.read(image) for image in images] == [picture(k) for k in range(3)]


def test_a_read_that_fails_twice_and_then_works(web: str) -> None:
    Server.files["/flaky.png"] = picture(1)
    Server.failures["/flaky.png"] = 2
    assert read_remote(f"{web}/flaky.png") == picture(1)
    Server.failures["/flaky.png"] = 3
    with pytest.raises(ImageError, match="answers 503"):
        read_remote(f"{web}/flaky.png")
    Server.failures.clear()


def test_no_answer_is_longer_than_was_asked_for(web: str) -> None:
    with pytest.raises(ImageError, match="more than the limit"):
        read_remote(f"{web}/endless.png", max_bytes=1000)
    # A server that knows no ranges.
    Server.files["/whole.png"] = picture(2)
    assert read_remote(f"{web}/whole.png") == picture(2)


@pytest.mark.parametrize(
    "to", ["http://169.254.169.254/latest/meta-data", "http://localhost:1/x.png", "http://[fe80::1]/x"]
)
def test_no_redirect_leads_into_other_networks(web: str, to: str) -> None:
    with pytest.raises(ImageError, match="cannot be read: "):
        read_remote(f"{web}/to/{to}")


def test_addresses() -> None:
    for address in ("169.254.169.254", "fe80::1%eth0", "::ffff:169.254.169.254", "0.0.0.0", "224.0.0.1"):
        for named in (True, False):
            with pytest.raises(OSError, match="no server may send us to"):
                check_address(address, named=named)
    for address in ("127.0.0.1", "10.0.0.1", "::1", "192.168.1.1", "100.64.0.1"):
        check_address(address, named=True)
        with pytest.raises(OSError, match="no server may send us to"):
            check_address(address, named=False)
    check_address("93.184.216.34", named=False)
