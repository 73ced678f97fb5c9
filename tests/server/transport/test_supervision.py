"""Health says what the engine's thread and its device do, and says so when it is over; systemd hears of it."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cbir.server.deployment import EngineConfig
from cbir.server.observe import Notifier
from cbir.server.transport import Server
from cbir.v1 import search_pb2 as pb

BY_ID = pb.SearchRequest(query=pb.Query(image_id="twin"))
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbir.server.transport.supervision._EVERY", 0.02)
    monkeypatch.setattr("cbir.server.transport.supervision._TRY_EVERY", 0.02)


def watching(running: Any) -> Any:
    return health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest(service=""))


async def test_an_engine_that_hangs_and_comes_back(serve: Any, gated: Any, tiny: Any) -> None:
    gate, engine = gated
    config = Preloaded(tiny.index, engine)
    gate.gate.set()
    async with serve(config=config()) as running:
        running.server._supervisor._hang = 0.2
        watch = watching(running)
        assert (await watch.read()).status == SERVING
        gate.gate.clear()
        call = running.search.Search(pb.SearchRequest(query=pb.Query(image=tiny.bytes_of("twin"))))
        # Here and not at a time: whatever the machine is at besides.
        assert (await watch.read()).status == NOT_SERVING
        gate.gate.set()
        assert (await call).hits
        assert (await watch.read()).status == SERVING


class Preloaded:
    """Configurations that serve an engine that exists."""

    def __init__(self, index: Path, engine: Any) -> None:
        self._index, self._engine = index, engine

    def __call__(self, **limits: float) -> EngineConfig:
        from cbir.server.limits import Limits

        engine = self._engine

        class Config(EngineConfig):
            def load(self, version: str | None = None, **_: Any) -> Any:
                return engine

        return Config(self._index, limits=Limits(cache_entries=0, **limits))


async def test_a_thread_that_ends_is_replaced(
    serve: Any, tiny: Any, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: list[object] = []
    monkeypatch.setattr("threading.excepthook", deaths.append)
    async with serve(config=Preloaded(tiny.index, engine)()) as running:
        watch = watching(running)
        assert (await watch.read()).status == SERVING
        answer = engine.answer

        def die(*_: object) -> None:
            monkeypatch.setattr(engine, "answer", answer)
            raise SystemExit

        monkeypatch.setattr(engine, "answer", die)
        with pytest.raises(grpc.aio.AioRpcError):  # nobody is left waiting
            await running.search.Search(BY_ID, timeout=20)
        assert (await running.search.Search(BY_ID, timeout=20)).hits
        told = [(await watch.read()).status for _ in range(2)]
        assert told == [NOT_SERVING, SERVING]


async def test_a_device_that_fails_and_works_again(
    serve: Any, tiny: Any, engine: Any, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    async with serve(config=Preloaded(tiny.index, engine)()) as running:
        watch = watching(running)
        assert (await watch.read()).status == SERVING
        answer = engine.answer

        def fail(*_: object) -> None:
            raise RuntimeError("CUDA error: device-side assert triggered")

        monkeypatch.setattr(engine, "answer", fail)
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.search.Search(BY_ID)
            assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert (await watch.read()).status == NOT_SERVING
        monkeypatch.setattr(engine, "answer", answer)
        assert (await watch.read()).status == SERVING
        # Queries that are at fault themselves say nothing about the device.
        for _ in range(5):
            with pytest.raises(grpc.aio.AioRpcError):
                await running.search.Search(pb.SearchRequest(query=pb.Query(image=b"no image")))
        assert running.server._supervisor.problem() is None


async def test_systemd_is_told(tiny: Any, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        server = Server(Preloaded(tiny.index, engine)())
        await server.start()
        await server.load()
        import asyncio

        ready = manager.recv(4096).decode()
        assert ready.startswith("READY=1\nSTATUS=serving ")
        assert await asyncio.to_thread(manager.recv, 4096) == b"WATCHDOG=1"
        await server.stop()
        said = []
        while not said or said[-1] != b"STOPPING=1":
            said.append(manager.recv(4096))
        assert set(said) <= {b"WATCHDOG=1", b"STOPPING=1"}


def test_nobody_is_told_who_has_not_asked(tmp_path: Path) -> None:
    Notifier({}).ready("x")
    assert Notifier({"WATCHDOG_USEC": "1000"}).watchdog_seconds is None
    gone = {"NOTIFY_SOCKET": str(tmp_path / "none"), "WATCHDOG_USEC": "4000000"}
    Notifier(gone).alive()
    assert Notifier(gone).watchdog_seconds == 2.0
    assert Notifier({**gone, "WATCHDOG_PID": "1"}).watchdog_seconds is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"cbir-test-{os.getpid()}"
        manager.bind(f"\0{name}")
        manager.settimeout(10)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).status("hello")
        assert manager.recv(100) == b"STATUS=hello"
