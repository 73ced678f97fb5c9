"""A tiny index over generated images, and real servers on loopback ports."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import timm
import torch
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray
from PIL import Image

from cbir.core.artifacts import Gallery, GalleryImage, IndexStore, Manifest
from cbir.core.ensemble import Embedder, EnsembleSpec, load_embedder, load_ensemble, member_fingerprint
from cbir.core.images import decode_image, find_content, perceptual_hash, prepare
from cbir.core.metric import fit_projection
from cbir.core.milvus import vector_store
from cbir.core.search import LocalStore, VectorStore
from cbir.core.vote import VoteSettings
from cbir.server.access import Access
from cbir.server.deployment import EngineConfig
from cbir.server.engine import Engine
from cbir.server.limits import Limits
from cbir.server.transport import Server
from cbir.v1 import admin_pb2_grpc, search_pb2_grpc

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200), "grey": (120, 120, 120)}
PATTERNS = ("stripes", "checks", "rings", "noise")
#: Has the bytes of ``red-checks-0``.
TWIN = "twin"

ENSEMBLE = """
[ensemble]
name = "tiny"
crop = "border"
[[members]]
name = "resnet"
backend = "timm"
model = "test_resnet"
weights = "resnet.safetensors"
input = { size = 32 }
dim = 16
metric = "pca"
[[members]]
name = "convnext"
backend = "timm"
model = "test_convnext"
input = { size = 48, interpolation = "bilinear" }
dim = 12
metric = "pca"
weight = 2.0
"""


def draw(colour: str, pattern: str, number: int) -> Image.Image:
    """An 80 x 64 picture; the number varies phase and period."""
    y, x = np.mgrid[0:64, 0:80] + 3 * number
    period = 6 + number
    shade = {
        "stripes": (x // period) % 2,
        "checks": (x // period + y // period) % 2,
        "rings": (np.hypot(x - 40, y - 32) // period) % 2,
        "noise": np.random.default_rng(number).random((64, 80)),
    }[pattern]
    pixels = np.array(COLOURS[colour]) * (0.4 + 0.6 * shade[..., None]) + 10 * number
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_pictures(folder: Path) -> None:
    """64 images named ``colour-pattern-number.png``, and a twin."""
    folder.mkdir()
    for colour in COLOURS:
        for pattern in PATTERNS:
            for number in range(4):
                draw(colour, pattern, number).save(folder / f"{colour}-{pattern}-{number}.png")
    shutil.copy(folder / "red-checks-0.png", folder / f"{TWIN}.png")


def build(
    index: Path,
    pictures: Path,
    spec: EnsembleSpec,
    vote: VoteSettings | None = None,
    vectors: VectorStore | None = None,
) -> str:
    """Publish a version and return its name."""
    vectors = vectors or LocalStore()
    images, pixels = [], []
    for path in sorted(pictures.glob("*.png")):
        data = path.read_bytes()
        decoded = decode_image(data)
        box = find_content(decoded.pixels, spec.crop)
        colour, _, rest = path.stem.partition("-")
        images.append(
            GalleryImage(
                id=path.stem,
                uri=str(path),
                label=colour if colour in COLOURS else None,
                width=decoded.width,
                height=decoded.height,
                sha256=hashlib.sha256(data).hexdigest(),
                phash=perceptual_hash(decoded.pixels, box),
                crop=box,
                metadata={"pattern": rest.partition("-")[0]} if rest else {},
            )
        )
        pixels.append((decoded.pixels, box))
    gallery = Gallery.from_images(images)
    store = IndexStore(index, on_live=vectors.make_live)
    with store.lock():
        writer = store.begin()
        gallery.write(writer.file("images.parquet"))
        members = {}
        for member in spec.members:
            embedder = load_embedder(member, "cpu", "torch")
            raw = embedder.embed(np.stack([prepare(p, b, embedder.size, embedder.interpolation) for p, b in pixels]))
            projection, fitted_on = fit_projection(raw, member.dim, member.metric)
            np.save(writer.file(f"members/{member.name}/embeddings.npy"), projection.apply(raw).astype(np.float16))
            safetensors.numpy.save_file(
                projection.arrays(), writer.file(f"members/{member.name}/projection.safetensors")
            )
            members[member.name] = {
                "fingerprint": member_fingerprint(member, spec.crop),
                "raw_dim": embedder.dim,
                "dim": projection.dim,
                "metric": member.metric,
                "fitted_on": fitted_on,
                "index": "exact",
            }
        vote = vote or VoteSettings({m.name: m.weight for m in spec.members}, label_share=0.3)
        writer.file("vote.json").write_text(json.dumps(vote.to_json()))
        manifest = Manifest(
            version="",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            images=len(gallery),
            labels=len(gallery.labels),
            ensemble=spec,
            members=members,
            files={},
            store=vectors.keep(writer.path, gallery, dict.fromkeys(members, "exact"), lambda done, total: None),
        )
        return writer.publish(manifest).name


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny networks on several threads wait for each other more than they compute."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Tiny:
    """The tiny index and what it was made of."""

    index: Path
    pictures: Path
    ensemble: Path
    version: str
    vectors: VectorStore = field(default_factory=LocalStore)

    def bytes_of(self, image_id: str) -> bytes:
        return (self.pictures / f"{image_id}.png").read_bytes()


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., Tiny]:
    """Make an index in a folder; its vectors are in Milvus where an address is given."""

    def make(folder: Path, milvus: str | None = None) -> Tiny:
        (folder / "index").mkdir()
        vectors = vector_store(folder / "index", milvus)
        torch.manual_seed(1)
        state = timm.create_model("test_resnet", pretrained=False).state_dict()
        safetensors.torch.save_file(state, folder / "resnet.safetensors")
        (folder / "tiny.toml").write_text(ENSEMBLE)
        write_pictures(folder / "pictures")
        spec = load_ensemble(folder / "tiny.toml")
        version = build(folder / "index", folder / "pictures", spec, vectors=vectors)
        return Tiny(folder / "index", folder / "pictures", folder / "tiny.toml", version, vectors)

    return make


@pytest.fixture(scope="session", name="build")
def build_fixture() -> Callable[..., str]:
    """Publish a version of any vote into any store."""
    return build


@pytest.fixture(scope="session")
def kept_in(request: pytest.FixtureRequest) -> str:
    """Where the vectors of the index most tests read are kept; tests may ask for ``milvus``."""
    return str(getattr(request, "param", "local"))


@pytest.fixture(scope="session")
def tiny(kept_in: str, tmp_path_factory: pytest.TempPathFactory, make_tiny: Callable[..., Tiny]) -> Tiny:
    """The index most tests read."""
    folder = tmp_path_factory.mktemp("tiny")
    if kept_in == "local":
        return make_tiny(folder)
    pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")
    return make_tiny(folder, str(folder / "milvus.db"))


@pytest.fixture
def own_tiny(tiny: Tiny, tmp_path: Path) -> Tiny:
    """A copy of the index that a test may spoil; pictures and weights stay where they are."""
    shutil.copytree(tiny.index, tmp_path / "index")
    return Tiny(tmp_path / "index", tiny.pictures, tiny.ensemble, tiny.version, tiny.vectors)


@pytest.fixture(scope="session")
def publish(tiny: Tiny) -> Callable[[Path], str]:
    """Publish another version, with another vote, into an index."""

    def publish_version(index: Path) -> str:
        vote = VoteSettings({"resnet": 3.0, "convnext": 1.0})
        return build(index, tiny.pictures, load_ensemble(tiny.ensemble), vote)

    return publish_version


@pytest.fixture(scope="session")
def engine(tiny: Tiny) -> Engine:
    """The engine most tests use."""
    return Engine.load(tiny.index, device="cpu", runtime="torch", store=tiny.vectors)


class GatedEmbedder:
    """Waits for a gate before every forward pass, and counts what passes."""

    def __init__(self, inner: Embedder) -> None:
        self.dim, self.size, self.interpolation = inner.dim, inner.size, inner.interpolation
        self.runtime, self.precision, self.threads = inner.runtime, inner.precision, inner.threads
        self._inner = inner
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[int] = []

    def embed(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.entered.set()
        assert self.gate.wait(20)
        self.batches.append(len(batch))
        return self._inner.embed(batch)


@dataclass(frozen=True)
class Preloaded(EngineConfig):
    """Serves an engine that exists."""

    engine: Engine | None = field(default=None)

    def load(self, version: str | None = None, **_: object) -> Engine:
        assert self.engine is not None
        return self.engine


@pytest.fixture
def gated(tiny: Tiny) -> tuple[GatedEmbedder, Engine]:
    """An engine whose first member is held up by a gate."""
    version = IndexStore(tiny.index).open()
    members = {m.name: load_embedder(m, "cpu", "torch") for m in version.manifest.ensemble.members}
    gate = GatedEmbedder(members["resnet"])
    return gate, Engine(version, tiny.vectors.open(version, "cpu"), {**members, "resnet": gate}, Limits())


class Running:
    """A server and a client of it."""

    def __init__(self, server: Server, channel: grpc.aio.Channel, admin: grpc.aio.Channel) -> None:
        self.server, self.channel, self.admin_channel = server, channel, admin
        self.search = search_pb2_grpc.SearchServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(admin)


Serve = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def serve(tiny: Tiny, engine: Engine) -> Serve:
    """Start a server in this event loop: ``async with serve() as running``.

    It remembers no answers unless it is told to, so that equal queries of a test are so many queries.
    """

    @asynccontextmanager
    async def start(
        config: EngineConfig | None = None, *, engine: Engine = engine, access: Access | None = None, **limits: float
    ) -> AsyncIterator[Running]:
        bounds = Limits(**{"cache_entries": 0, **limits})
        if config is None:
            if limits:
                opened = IndexStore(tiny.index).open()
                engine = Engine(opened, tiny.vectors.open(opened, "cpu"), engine.embedders, bounds)
            config = Preloaded(tiny.index, limits=bounds, engine=engine)
        async with (
            Server(config, access=access) as server,
            grpc.aio.insecure_channel(server.address) as channel,
            grpc.aio.insecure_channel(server.admin_address) as admin,
        ):
            yield Running(server, channel, admin)

    return start


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Wait until a condition holds."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - what is waited for knows no events
                await asyncio.sleep(0.002)

    return wait


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing goes wrong behind the scenes either."""
    yield
    noise = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR and r.name.startswith(("grpc", "asy"))]
    # The synchronous server is that of Milvus Lite, which says so of every call that it does not have.
    noise = [r for r in noise if r.name != "grpc._server"]
    assert not noise, [r.getMessage() for r in noise]


@dataclass(frozen=True)
class Failure:
    """A rich status taken apart."""

    code: int
    message: str
    reason: str
    metadata: dict[str, str]
    field: str | None
    retry_after: float | None


@pytest.fixture(scope="session")
def failure() -> Callable[[grpc.aio.AioRpcError | status_pb2.Status], Failure]:
    """Take a status apart; it must hold exactly one ErrorInfo of our domain."""

    def take_apart(error: grpc.aio.AioRpcError | status_pb2.Status) -> Failure:
        status = error if isinstance(error, status_pb2.Status) else rpc_status.from_call(error)
        assert status is not None, error
        found = {}
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            matching = [d for d in status.details if d.Is(kind.DESCRIPTOR)]
            assert len(matching) <= 1
            if matching:
                found[kind] = kind()
                matching[0].Unpack(found[kind])
        assert len(found) == len(status.details)
        info = found[error_details_pb2.ErrorInfo]
        assert info.domain == "ensemble-cbir"
        bad, retry = found.get(error_details_pb2.BadRequest), found.get(error_details_pb2.RetryInfo)
        return Failure(
            status.code,
            status.message,
            info.reason,
            dict(info.metadata),
            bad.field_violations[0].field if bad else None,
            retry.retry_delay.ToTimedelta().total_seconds() if retry else None,
        )

    return take_apart
