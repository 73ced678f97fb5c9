"""Start, health, reload and stop."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import sys
import threading
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cbir.core.artifacts import IndexStore
from cbir.core.errors import ArtifactError, ConfigurationError
from cbir.server.access import Access
from cbir.server.deployment import EngineConfig
from cbir.server.engine import Engine
from cbir.server.limits import Limits
from cbir.server.transport import Server, streaming
from cbir.v1 import admin_pb2, search_pb2_grpc
from cbir.v1 import search_pb2 as pb

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
ANYBODY = Access(insecure=True)
BY_ID = pb.SearchRequest(query=pb.Query(image_id="twin"))


@dataclass(frozen=True)
class HeldUp(EngineConfig):
    """Loads when it is let."""

    engine: Engine | None = None
    gate: threading.Event = field(default_factory=threading.Event)

    def load(self, version: str | None = None, **_: object) -> Engine:
        assert self.gate.wait(20)
        assert self.engine is not None
        return self.engine


def by_bytes(tiny: Any) -> pb.SearchRequest:
    return pb.SearchRequest(query=pb.Query(image=tiny.bytes_of("twin")))


async def check(health: Any, service: str = "") -> int:
    return (await health.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_health_follows_the_life_of_the_server(tiny: Any, engine: Engine, failure: Any) -> None:
    config = HeldUp(tiny.index, engine=engine, limits=Limits(cache_entries=0))
    server = Server(config)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        search = search_pb2_grpc.SearchServiceStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="cbir.v1.SearchService"))
        other = health.Watch(health_pb2.HealthCheckRequest(service=""))
        loading = asyncio.create_task(server.load())
        assert (await watch.read()).status == NOT_SERVING
        assert (await other.read()).status == NOT_SERVING
        assert await check(health) == await check(health, "cbir.v1.SearchService") == NOT_SERVING
        for call in (search.Search(BY_ID), search.GetIndexInfo(pb.GetIndexInfoRequest())):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert failure(caught.value).reason == "NOT_READY"
        config.gate.set()
        await loading
        assert (await watch.read()).status == SERVING
        assert await check(health) == await check(health, "cbir.v1.SearchService") == SERVING
        assert (await search.Search(BY_ID)).hits
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(health, "nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        # One watcher that leaves takes nothing from the others, and none of them holds up the stop.
        other.cancel()
        await asyncio.wait_for(server.stop(grace=30), 10)
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF


async def test_a_stop_answers_what_is_under_way(tiny: Any, gated: Any, failure: Any, until: Any) -> None:
    gate, engine = gated
    config = HeldUp(tiny.index, engine=engine, limits=Limits(cache_entries=0))
    config.gate.set()
    server = Server(config)
    await server.start()
    await server.load()
    async with grpc.aio.insecure_channel(server.address) as channel:
        search = search_pb2_grpc.SearchServiceStub(channel)
        unary = asyncio.ensure_future(search.Search(by_bytes(tiny)))
        stream = search.SearchStream()
        await stream.write(pb.SearchStreamRequest(request_id="1", request=by_bytes(tiny)))
        await until(lambda: server.pipeline.forecast.under_way == 2)
        stopping = asyncio.create_task(server.stop(grace=20))
        await asyncio.sleep(0.1)
        assert not stopping.done()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await search.Search(BY_ID, timeout=2)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        gate.gate.set()
        assert (await unary).hits
        assert (await stream.read()).request_id == "1"
        # The client did not end its stream: it is told to connect again.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert failure(caught.value).reason == "STOPPING"
        await asyncio.wait_for(stopping, 10)


async def test_the_grace_of_a_stop_ends(tiny: Any, gated: Any) -> None:
    gate, engine = gated
    config = HeldUp(tiny.index, engine=engine, limits=Limits(cache_entries=0))
    config.gate.set()
    server = Server(config)
    await server.start()
    await server.load()
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = asyncio.ensure_future(search_pb2_grpc.SearchServiceStub(channel).Search(by_bytes(tiny)))
        await asyncio.to_thread(gate.entered.wait, 10)
        await asyncio.wait_for(server.stop(grace=0.2), 10)
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    gate.gate.set()


async def test_reload_changes_over_and_frees_the_old_engine(
    serve: Any, own_tiny: Any, publish: Any, until: Any
) -> None:
    config = EngineConfig(own_tiny.index, device="cpu", runtime="torch")
    async with serve(config=config) as running:
        old = weakref.ref(running.server.deployment.engine)
        same = await running.admin.ReloadIndex(admin_pb2.ReloadIndexRequest())
        assert (same.previous_version, same.version, same.changed) == (own_tiny.version, own_tiny.version, False)
        before = await running.search.Search(BY_ID)
        new = publish(own_tiny.index)
        assert (await running.search.Search(BY_ID)).index_version == own_tiny.version
        done = await running.admin.ReloadIndex(admin_pb2.ReloadIndexRequest())
        assert (done.previous_version, done.version, done.changed) == (own_tiny.version, new, True)
        after = await running.search.Search(BY_ID)
        assert (before.index_version, after.index_version) == (own_tiny.version, new)
        assert before.hits[1].votes[0].contribution != after.hits[1].votes[0].contribution
        # Threads of the old engine end on their own.
        await until(lambda: gc.collect() >= 0 and old() is None)
        back = await running.admin.ReloadIndex(admin_pb2.ReloadIndexRequest(version=own_tiny.version))
        assert (back.version, back.changed) == (own_tiny.version, True)


async def test_a_stream_that_is_left_leaves_nothing_behind(
    serve: Any, tiny: Any, gated: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queries know their engine, which holds files open: it must not take the collector to free them.

    The conversation itself knows none, once it has ended; gRPC's own error about the cancelled call may keep it.
    """
    gate, engine = gated
    queries: list[weakref.ref[Any]] = []

    class Noted(streaming._Asker):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            queries.append(weakref.ref(self))

    monkeypatch.setattr(streaming, "_Asker", Noted)
    async with serve(engine=engine) as running:
        stream = running.search.SearchStream()
        for number in range(3):
            await stream.write(pb.SearchStreamRequest(request_id=str(number), request=by_bytes(tiny)))
        await asyncio.to_thread(gate.entered.wait, 10)
        gc.collect()
        gc.disable()
        try:
            stream.cancel()
            gate.gate.set()
            # With the next batch the engine's thread forgets the last one.
            assert (await running.search.Search(by_bytes(tiny))).hits
            await until(lambda: len(queries) == 3 and all(query() is None for query in queries))
        finally:
            gc.enable()


@dataclass(frozen=True)
class Watched(EngineConfig):
    """Notes the priority of the thread that loads, and of one that it starts."""

    priorities: list[int] = field(default_factory=list)

    def load(self, version: str | None = None, **others: Any) -> Engine:
        def note() -> None:
            self.priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

        note()
        child = threading.Thread(target=note)
        child.start()
        child.join()
        return super().load(version, **others)


@pytest.mark.skipif(sys.platform != "linux", reason="priorities are of processes here, not of threads")
async def test_what_computes_for_long_steps_back_behind_those_that_answer(serve: Any, tiny: Any) -> None:
    config = Watched(tiny.index, device="cpu", runtime="torch")
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    async with serve(config=config):
        assert config.priorities == [min(19, own + 5)] * 2
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


async def test_twenty_reloads_under_load_fail_no_query(serve: Any, own_tiny: Any, publish: Any) -> None:
    limits = Limits(max_batch=4, cache_entries=0)
    versions = [own_tiny.version, publish(own_tiny.index)]
    config = EngineConfig(own_tiny.index, versions[0], device="cpu", runtime="torch", limits=limits)
    seen: list[str] = []
    async with serve(config=config) as running:
        models = running.server.deployment.engine.embedders
        old = weakref.ref(running.server.deployment.engine)
        done = asyncio.Event()

        async def query(request: pb.SearchRequest) -> None:
            while not done.is_set():
                answer = await running.search.Search(request)
                assert answer.hits[0].image_id in ("twin", "red-checks-0")
                seen.append(answer.index_version)

        async def converse() -> int:
            stream = running.search.SearchStream()
            count = 0
            while not done.is_set():
                await stream.write(pb.SearchStreamRequest(request_id=str(count), request=by_bytes(own_tiny)))
                assert (await stream.read()).response.hits
                count += 1
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
            return count

        async with asyncio.TaskGroup() as load:
            for request in (BY_ID, BY_ID, by_bytes(own_tiny)):
                load.create_task(query(request))
            stream = load.create_task(converse())
            for i in range(20):
                wanted = versions[(i + 1) % 2]
                reload = await running.admin.ReloadIndex(admin_pb2.ReloadIndexRequest(version=wanted))
                assert (reload.version, reload.changed) == (wanted, True)
            done.set()
        assert set(seen) == set(versions)
        assert stream.result() > 0
        now = running.server.deployment.engine
        # The models are the same and were not loaded again; all else of the old engines is gone.
        assert all(now.embedders[name] is model for name, model in models.items())
        assert running.server.deployment.reloaded == 20
        gc.collect()
        assert old() is None


async def test_every_bucket_is_warmed_up_on_the_thread_of_the_device_and_models_that_stay_are_warm(
    serve: Any, own_tiny: Any, publish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[tuple[str, int]] = []
    answer = Engine.answer

    def noted(self: Engine, batch: Any, waited: Any = None) -> Any:
        batches.append((threading.current_thread().name, len(batch)))
        return answer(self, batch, waited)

    monkeypatch.setattr(Engine, "answer", noted)
    limits = Limits(max_batch=6, cache_entries=0)
    async with serve(config=EngineConfig(own_tiny.index, device="cpu", runtime="torch", limits=limits)) as running:
        assert batches == [("cbir-engine", size) for size in (1, 2, 4, 6, 1)]
        batches.clear()
        publish(own_tiny.index)
        await running.admin.ReloadIndex(admin_pb2.ReloadIndexRequest())
        # A large batch would hold up the queries that come meanwhile.
        assert batches == [("cbir-engine", 1)] * 2


async def test_a_broken_version_is_refused_and_the_old_stays(
    serve: Any, own_tiny: Any, publish: Any, failure: Any
) -> None:
    async with serve(config=EngineConfig(own_tiny.index, device="cpu", runtime="torch")) as running:
        new = publish(own_tiny.index)
        folder = own_tiny.index / "versions" / new
        (folder / "members/convnext/embeddings.npy").unlink()
        copied = own_tiny.index / "versions" / "damaged"
        shutil.copytree(own_tiny.index / "versions" / own_tiny.version, copied)
        projection = copied / "members/resnet/projection.safetensors"
        projection.write_bytes(b"\xff" * projection.stat().st_size)
        for version, reason in (
            ("", "INDEX_INCOMPLETE"),
            ("nobody", "VERSION_NOT_FOUND"),
            ("../..", "VERSION_NOT_FOUND"),
            ("damaged", "INDEX_CORRUPT"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.admin.ReloadIndex(admin_pb2.ReloadIndexRequest(version=version))
            taken = failure(caught.value)
            assert (taken.code, taken.reason) == (grpc.StatusCode.FAILED_PRECONDITION.value[0], reason)
            assert (await running.search.Search(BY_ID)).index_version == own_tiny.version


async def test_queries_under_way_finish_on_the_version_they_began_with(
    tiny: Any, gated: Any, engine: Engine, until: Any
) -> None:
    gate, old = gated
    old._version.path = tiny.index / "versions" / "old"
    old._answer._version = "old"

    @dataclass(frozen=True)
    class Both(EngineConfig):
        def resolve(self, version: str | None = None) -> str:
            return engine.version

        def load(self, version: str | None = None, **_: object) -> Engine:
            return engine if version else old

    async with (
        Server(Both(tiny.index, limits=Limits(cache_entries=0))) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        search = search_pb2_grpc.SearchServiceStub(channel)
        calls = [asyncio.ensure_future(search.Search(by_bytes(tiny))) for _ in range(3)]
        await until(lambda: server.pipeline.forecast.under_way == 3)
        done = await server.deployment.reload(None)
        assert (done.previous, done.version, done.changed) == ("old", tiny.version, True)
        calls.append(asyncio.ensure_future(search.Search(by_bytes(tiny))))
        await asyncio.sleep(0.1)
        gate.gate.set()
        assert [(await call).index_version for call in calls] == ["old"] * 3 + [tiny.version]


async def test_a_port_in_use_is_refused(tiny: Any, engine: Engine) -> None:
    config = HeldUp(tiny.index, engine=engine, limits=Limits(cache_entries=0))
    first = Server(config)
    await first.start()
    second = Server(config, port=first.port)
    with pytest.raises(ConfigurationError, match=f"port {first.port} on 127.0.0.1 is in use") as caught:
        await second.start()
    assert caught.value.reason == "PORT_IN_USE"
    with pytest.raises(ConfigurationError, match="not known"):
        await Server(config, host="no such host", access=ANYBODY).start()
    with pytest.raises(ConfigurationError, match="cannot be listened on"):
        await Server(config, host="192.0.2.1", access=ANYBODY).start()
    await first.stop(0)


async def test_an_index_that_cannot_be_loaded_leaves_nothing_running(tmp_path: Path, until: Any) -> None:
    before = set(threading.enumerate())
    with pytest.raises(ArtifactError):
        async with Server(EngineConfig(tmp_path / "nothing")):
            pass
    # Told to end, they may need a moment to.  The event loop's own threads stay as long as it does.
    await until(lambda: not [t for t in set(threading.enumerate()) - before if t.name.startswith("cbir-")])


def refuse(config: EngineConfig) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        config.load()
    assert "\n" not in str(caught.value)
    return caught.value


def test_indexes_that_cannot_be_served(own_tiny: Any, tmp_path: Path) -> None:
    version = own_tiny.index / "versions" / own_tiny.version
    assert refuse(EngineConfig(tmp_path / "nothing")).reason == "INDEX_NOT_FOUND"
    assert refuse(EngineConfig(own_tiny.index, version="old")).reason == "VERSION_NOT_FOUND"

    other = tmp_path / "other.toml"
    source = own_tiny.ensemble.parent
    text = own_tiny.ensemble.read_text().replace('"resnet.safetensors"', f'"{source}/resnet.safetensors"')
    other.write_text(text.replace('"convnext"', '"convnext-x"'))
    error = refuse(EngineConfig(own_tiny.index, ensemble=str(other)))
    assert error.reason == "INDEX_MISMATCH"
    assert "convnext-x" in str(error)
    other.write_text(text.replace("size = 48", "size = 64"))
    assert refuse(EngineConfig(own_tiny.index, ensemble=str(other))).reason == "INDEX_MISMATCH"

    weights = tmp_path / "resnet.safetensors"
    data = bytearray((source / "resnet.safetensors").read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    other.write_text(own_tiny.ensemble.read_text())  # now the file beside it
    error = refuse(EngineConfig(own_tiny.index, ensemble=str(other), device="cpu", runtime="torch"))
    assert error.reason == "INDEX_MISMATCH"
    assert "other weights" in str(error)

    # Damage that keeps the sizes is found when asked for.
    vote = version / "vote.json"
    vote.write_text(vote.read_text().replace("0.3", "0.4"))
    assert refuse(EngineConfig(own_tiny.index, verify=True)).reason == "INDEX_CORRUPT"

    manifest = version / "manifest.json"
    whole = manifest.read_text()
    facts = json.loads(whole)
    del facts["ensemble"]
    manifest.write_text(json.dumps(facts))
    assert refuse(EngineConfig(own_tiny.index)).reason == "INDEX_CORRUPT"
    manifest.write_text(whole)
    images = version / "images.parquet"
    images.write_bytes(images.read_bytes()[:100])
    assert refuse(EngineConfig(own_tiny.index)).reason == "INDEX_INCOMPLETE"
    manifest.unlink()
    assert refuse(EngineConfig(own_tiny.index)).reason == "INDEX_INCOMPLETE"
    assert IndexStore(own_tiny.index).versions() == []
