"""A server without models: it answers by rule, on a real loopback port, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from PIL import Image

from cbir.client._async_client import AsyncClient
from cbir.client._client import Client
from cbir.v1 import admin_pb2, admin_pb2_grpc, search_pb2, search_pb2_grpc

MEMBERS = ("convnext", "resnetv2", "vit")
LABELS = ("cat", "dog", "cat", None)


def make_status(
    code: str, message: str, *, reason: str = "", retry: float | None = None, field: str = "", **metadata: str
) -> status_pb2.Status:
    """A rich status as servers of this API send it."""
    details: list[any_pb2.Any] = []

    def pack(message: Any) -> None:
        detail = any_pb2.Any()
        detail.Pack(message)
        details.append(detail)

    if reason:
        pack(error_details_pb2.ErrorInfo(reason=reason, domain="ensemble-cbir", metadata=metadata))
    if retry is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry * 1e9))
        pack(error_details_pb2.RetryInfo(retry_delay=delay))
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        pack(error_details_pb2.BadRequest(field_violations=[violation]))
    return status_pb2.Status(code=getattr(code_pb2, code), message=message, details=details)


def make_answer(request: search_pb2.SearchRequest) -> search_pb2.SearchResponse:
    """Hits whose votes add up, best first."""
    limit = request.options.limit or 10
    hits = []
    for row in range(min(limit, 12)):
        fused = 0.9 - 0.05 * row
        shares = (0.5 * fused, 0.3 * fused, 0.1 * fused)
        label = LABELS[row % len(LABELS)]
        hits.append(
            search_pb2.Hit(
                image_id=f"{label or 'plain'}/{row}.png",
                uri=f"gallery/{label or 'plain'}/{row}.png",
                **({"label": label} if label else {}),
                score=fused,
                fused_score=fused,
                label_contribution=0.1 * fused,
                votes=[
                    search_pb2.Vote(member=name, rank=row + 1, similarity=0.8 - 0.01 * row, contribution=share)
                    for name, share in zip(MEMBERS, shares, strict=True)
                ],
                metadata={"shelf": str(row)},
            )
        )
    response = search_pb2.SearchResponse(
        hits=[hit for hit in hits if hit.score >= request.options.min_score],
        labels=[
            search_pb2.LabelPrediction(label="cat", probability=0.75),
            search_pb2.LabelPrediction(label="dog", probability=0.25),
        ],
        index_version="v1",
    )
    if request.query.WhichOneof("source") == "image":
        response.crop.CopyFrom(search_pb2.Box(left=2, top=3, right=30, bottom=20))
    response.timings.decode.FromMicroseconds(1500)
    response.timings.embed.FromMicroseconds(20_000)
    return response


def make_png(colour: str = "red", size: tuple[int, int] = (40, 30)) -> bytes:
    """The bytes of a plain picture."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


class Gate:
    """Counts who is inside, and how many there were at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside = 0
        self.most = 0

    def add(self, number: int) -> None:
        with self._lock:
            self.inside += number
            self.most = max(self.most, self.inside)


class FakeServer(search_pb2_grpc.SearchServiceServicer, admin_pb2_grpc.AdminServiceServicer):
    """Both services. A test replaces an ``on_...`` function to change an answer."""

    make_status = staticmethod(make_status)
    make_answer = staticmethod(make_answer)
    make_png = staticmethod(make_png)
    members = MEMBERS

    def __init__(self) -> None:
        self.target = ""
        self.health = health.HealthServicer()
        self.requests: list[Any] = []
        self.metadata: list[tuple[str, str]] = []
        self.gate = Gate()
        self.streams = 0
        #: What it says of the pixels that it can use, and how often it was asked.
        self.query_side = self.described = 0
        self.on_search: Callable[[search_pb2.SearchRequest, Any], search_pb2.SearchResponse] = lambda r, c: make_answer(
            r
        )
        self.on_item: Callable[[search_pb2.SearchStreamRequest, Any], search_pb2.SearchStreamResponse] = self.item
        self.on_stream: Callable[[Iterator[Any], Any], Iterator[Any]] = self.stream
        self.on_reload: Callable[[Any, Any], Any] = self.reloaded

    @staticmethod
    def abort(context: Any, code: str, message: str, **details: Any) -> None:
        """End a call with a rich status."""
        context.abort_with_status(rpc_status.to_status(make_status(code, message, **details)))

    def ready(self, serving: bool = True) -> None:
        """Change what the health service says."""
        status = health_pb2.HealthCheckResponse
        self.health.set("", status.SERVING if serving else status.NOT_SERVING)

    @staticmethod
    def item(request: search_pb2.SearchStreamRequest, context: Any) -> search_pb2.SearchStreamResponse:
        if request.request.query.image.startswith(b"bad"):
            error = make_status("INVALID_ARGUMENT", "the bytes are no image", reason="IMAGE_FORMAT")
            return search_pb2.SearchStreamResponse(request_id=request.request_id, error=error)
        return search_pb2.SearchStreamResponse(request_id=request.request_id, response=make_answer(request.request))

    def stream(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for request in requests:
            self.requests.append(request)
            yield self.on_item(request, context)

    # The services.

    def Search(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.metadata = [(key, value) for key, value in context.invocation_metadata()]
        return self.on_search(request, context)

    def SearchStream(self, request_iterator: Any, context: Any) -> Any:
        self.streams += 1
        yield from self.on_stream(request_iterator, context)

    def GetIndexInfo(self, request: Any, context: Any) -> Any:
        self.described += 1
        info = search_pb2.GetIndexInfoResponse(
            version="v1",
            images=1234,
            labels=12,
            ensemble="compact",
            members=[
                search_pb2.MemberInfo(
                    name=name,
                    backend="timm",
                    model=f"{name}_tiny",
                    weight=0.5,
                    embedding_dim=4,
                    dim=2,
                    runtime="openvino",
                    precision="bf16",
                    threads=2,
                )
                for name in MEMBERS
            ],
            crop=search_pb2.CROP_CONTENT,
            max_limit=100,
            max_image_bytes=2**25,
            server_version="0.1.0",
            index="exact",
            query_side=self.query_side,
        )
        info.created_at.FromSeconds(1_700_000_000)
        return info

    def GetImage(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if request.image_id == "nowhere":
            self.abort(context, "NOT_FOUND", "no image is called 'nowhere'", reason="UNKNOWN_IMAGE_ID")
        if request.image_id.startswith("raw"):
            # So many bytes, and perhaps another number that is claimed.
            _, size, *claimed = request.image_id.split(":")
            data, media_type = bytes(range(256)) * (int(size) // 256), "application/octet-stream"
            total = int(claimed[0]) if claimed else len(data)
        else:
            side = request.thumbnail if request.HasField("thumbnail") else 64
            data, media_type = make_png("blue", (side, side)), "image/png"
            total = len(data)
        pieces = [data[start : start + 1000] for start in range(0, len(data), 1000)]
        for number, piece in enumerate(pieces):
            first = {"media_type": media_type, "total_bytes": total} if number == 0 else {}
            yield search_pb2.GetImageResponse(chunk=piece, **first)

    def ListImages(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        ids = [f"{name}/{row}.png" for name in ("cat", "dog") for row in range(5)]
        ids = [name for name in ids if name.startswith(request.id_prefix)]
        start = int(request.page_token or 0)
        end = start + min(request.page_size, 3)
        return search_pb2.ListImagesResponse(
            images=[
                search_pb2.GalleryImage(image_id=name, label=name[:3], width=40, height=30, metadata={"shelf": "1"})
                for name in ids[start:end]
            ],
            next_page_token=str(end) if end < len(ids) else "",
            total=len(ids),
            index_version="v1",
        )

    def GetFacets(self, request: Any, context: Any) -> Any:
        values = [search_pb2.FacetValue(value=name, images=5) for name in ("cat", "dog")][: request.limit]
        labels = search_pb2.Facet(values=values, distinct=2)
        return search_pb2.GetFacetsResponse(labels=labels, metadata={"shelf": labels}, index_version="v1")

    def ReloadIndex(self, request: Any, context: Any) -> Any:
        return self.on_reload(request, context)

    def reloaded(self, request: Any, context: Any) -> Any:
        if request.version == "broken":
            self.abort(context, "FAILED_PRECONDITION", "version 'broken' cannot be loaded", reason="INDEX_CORRUPT")
        return admin_pb2.ReloadIndexResponse(
            previous_version="v1", version=request.version or "v1", changed=bool(request.version)
        )


@pytest.fixture
def start_server() -> Iterator[Callable[..., FakeServer]]:
    """Start fake servers; they are stopped after the test."""
    running: list[grpc.Server] = []

    def start(
        fake: FakeServer | None = None,
        *,
        port: int = 0,
        with_health: bool = True,
        ready: bool = True,
        credentials: Any = None,
        workers: int = 8,
    ) -> FakeServer:
        fake = fake or FakeServer()
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 8 * 2**20)]
        server = grpc.server(ThreadPoolExecutor(max_workers=workers), options=options)
        search_pb2_grpc.add_SearchServiceServicer_to_server(fake, server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(fake, server)
        if with_health:
            health_pb2_grpc.add_HealthServicer_to_server(fake.health, server)
        address = f"127.0.0.1:{port}"
        taken = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        fake.target = f"127.0.0.1:{taken}"
        fake.ready(ready)
        fake.stop = lambda: server.stop(None).wait()
        server.start()
        running.append(server)
        return fake

    yield start
    for server in running:
        server.stop(None).wait()


@pytest.fixture
def server(start_server: Callable[..., FakeServer]) -> FakeServer:
    """One running fake server."""
    return start_server()


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    """A client of it."""
    with Client(server.target, timeout=5.0) as client:
        yield client


class Blocking:
    """An AsyncClient to be called like a Client, so that one test serves both."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self._runner.run(getattr(self._client, name)(*args, **kwargs))

    def search_stream(self, queries: Any, **options: Any) -> Iterator[Any]:
        answers = self._client.search_stream(queries, **options)
        try:
            while True:
                try:
                    yield self._runner.run(anext(answers))
                except StopAsyncIteration:
                    return
        finally:
            self._runner.run(answers.aclose())

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        self._runner.close()


@pytest.fixture(params=["sync", "async"])
def make_client(request: Any) -> Any:
    """Both kinds of client, one after the other; to be called with a target and settings."""
    return Client if request.param == "sync" else Blocking


@pytest.fixture
def any_client(server: FakeServer, make_client: Any) -> Iterator[Any]:
    """A client of either kind of the running server."""
    with make_client(server.target, timeout=5.0) as client:
        yield client


@pytest.fixture
def no_server() -> str:
    """An address at which nothing listens."""
    holder = grpc.server(ThreadPoolExecutor(max_workers=1))
    port = holder.add_insecure_port("127.0.0.1:0")
    holder.start()
    holder.stop(None).wait()
    return f"127.0.0.1:{port}"
