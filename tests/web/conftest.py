"""One search server over a small gallery, and one page before it, both on loopback ports in a thread of their own."""

from __future__ import annotations

import asyncio
import csv
import http.client
import json
import threading
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import tiny_clip
import torch
from browsing import ARGUMENTS, Visit, Watched, chromium
from images import encode, pattern

from cbir.client import AsyncClient, SearchResult
from cbir.core.ensemble import load_ensemble
from cbir.indexer.build import RunSettings, build
from cbir.indexer.sources import open_sources
from cbir.server.access import Access, Listener
from cbir.server.deployment import EngineConfig
from cbir.server.engine import Engine
from cbir.server.limits import Limits
from cbir.server.transport import Server
from cbir.web.gateway import Listening, Settings, application

T = TypeVar("T")

KINDS = ("stripes", "checks", "rings", "blobs")
#: What a label and a column must never become: markup.
HOSTILE = '<img src=x onerror="window.hacked=1">'


@dataclass(frozen=True)
class Loaded(EngineConfig):
    """Serves an engine that exists."""

    engine: Engine | None = field(default=None)

    def load(self, version: str | None = None, **_: object) -> Engine:
        assert self.engine is not None
        return self.engine


class Site:
    """The search server and the page, to be used from tests that know no event loop."""

    def __init__(self, config: Loaded) -> None:
        self._config, self._port = config, 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.start_search()
        self.client = AsyncClient(f"127.0.0.1:{self._port}", timeout=30.0, token="a-secret-token", downscale=False)
        self._listening = Listening(Settings(port=0, names=("photos.example",), upload=2**20))
        self.port, self.url = self._listening.port, self._listening.url
        self._serving = asyncio.run_coroutine_threadsafe(
            self._listening.serve(application(Settings(names=("photos.example",), upload=2**20), self.client)),
            self._loop,
        )

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def start_search(self) -> None:
        async def start() -> Server:
            access = Access(admin=Listener("127.0.0.1", 0))
            server = Server(self._config, port=self._port, access=access)
            await server.start()
            await server.load()
            return server

        self._server = self.run(start())
        self._port = self._server.port

    def stop_search(self) -> None:
        self.run(self._server.stop(0))

    def stop(self) -> None:
        self._listening.stop()
        self._serving.result(20)
        self.run(self.client.close())
        self.stop_search()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    def search(self, query: Any = None, **options: Any) -> SearchResult:
        """What the search server answers without a page."""
        return self.run(self.client.search(query, **options))

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One HTTP request; status, headers in lower case, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        """A request of the page; status and document."""
        status, _, data = self.ask("POST", path, body, {"X-Cbir-Web": "1", "Content-Type": "application/octet-stream"})
        return status, json.loads(data)


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index that all these tests search."""
    folder = tmp_path_factory.mktemp("site")
    torch.set_num_threads(1)
    tiny_clip.register()
    (folder / "worded.toml").write_text(tiny_clip.ENSEMBLE.replace('crop = "none"', 'crop = "border"'))
    rows = []
    for kind, name in enumerate(KINDS):
        for seed in range(8):
            path = folder / f"{name}-{seed}.png"
            path.write_bytes(encode(pattern(kind, seed), "PNG"))
            label = HOSTILE if (name, seed) == ("rings", 0) else name
            shelf = HOSTILE if seed == 1 else f"shelf {seed % 2}"
            rows.append({"path": path.name, "id": f"{name}/{seed}", "label": label, "shelf": shelf})
    table = folder / "images.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    ensemble, settings = load_ensemble(folder / "worded.toml"), RunSettings(device="cpu", runtime="torch")
    build(open_sources([str(table)]), folder / "index", ensemble, settings)
    return folder / "index"


@pytest.fixture(scope="module")
def site(indexed: Path) -> Iterator[Site]:
    """The site that the tests of a module share.

    It goes with the module: gRPC serves all event loops of a process by one thread, so a loop that lived on beside
    those of other modules' tests could miss what was meant for it, and would then wait for its end in vain.
    """
    engine = Engine.load(indexed, device="cpu", runtime="torch")
    found = Site(Loaded(indexed, limits=Limits(), engine=engine))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for the tests of a module; then it is closed, because it keeps an event loop of its own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make setup")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        yield found
        found.close()


DESKTOP = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}


@pytest.fixture(scope="module")
def desktop(browser: Any, site: Site) -> Iterator[Watched]:
    """The window of the tests that ask for no other: a window of its own would cost each of them a second."""
    context = browser.new_context(**DESKTOP)
    yield Watched(context.new_page(), site.url)
    context.close()


@pytest.fixture
def visit(browser: Any, desktop: Watched, site: Site) -> Iterator[Visit]:
    """Open windows, each without memories; in the end nothing may have gone wrong in them.

    The first without options is the shared one, with its page loaded anew.
    """
    opened: list[Watched] = []
    contexts: list[Any] = []

    def start(address: str = "", **options: Any) -> Watched:
        if options or opened:
            contexts.append(browser.new_context(**{**DESKTOP, **options}))
            opened.append(Watched(contexts[-1].new_page(), site.url))
        else:
            opened.append(desktop)
        opened[-1].open(address)
        return opened[-1]

    yield start
    faults = [fault for window in opened for fault in window.faults]
    for context in contexts:
        context.close()
    desktop.forget()
    assert faults == []
