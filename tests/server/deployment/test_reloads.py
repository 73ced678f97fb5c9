"""Reloads: one at a time, shared by those who ask for the same, stopped when nobody waits, refused where they harm."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cbir.core.artifacts import IndexStore
from cbir.core.errors import ArtifactError, ConfigurationError
from cbir.server.deployment import Deployment, EngineConfig, reload_unasked, watch
from cbir.server.deployment.memory import available_bytes, check_memory, needed_bytes
from cbir.server.limits import Limits
from cbir.server.queue import OverloadedError


@dataclass
class FakeEngine:
    version: str
    models: dict[str, object] = field(default_factory=dict)


class FakePipeline:
    """What a deployment asks of a pipeline."""

    class Cache:
        def serve(self, version: str) -> None:
            pass

    cache = Cache()

    def on_engine_thread(self, act: Any) -> Any:
        return act()


@dataclass(frozen=True)
class Config(EngineConfig):
    """Loads in steps, as it is let."""

    log: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    live: list[str] = field(default_factory=lambda: ["v0"])

    def resolve(self, version: str | None = None) -> str:
        return version or self.live[-1]

    def load(self, version: str | None = None, *, on_step: Any = None, **_: Any) -> Any:
        self.log.append(f"begin {version}")
        for _ in range(2000):
            if self.gate.wait(0.005):
                break
            on_step(None, None)
        if version == "broken":
            raise ArtifactError("it is broken", reason="INDEX_CORRUPT")
        self.log.append(f"end {version}")
        return FakeEngine(version or "v0")


@pytest.fixture
async def deployment(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("cbir.server.deployment.deployment.check_memory", lambda *_: None)
    config = Config(Path("nowhere"), limits=Limits(reloads=3))
    config.gate.set()
    made: Any = Deployment(config, FakePipeline())  # type: ignore[arg-type]
    await made.load()
    config.gate.clear()
    config.log.clear()
    made.config = config
    return made


async def test_those_who_ask_for_the_same_share_one_reload(deployment: Any, until: Any) -> None:
    config = deployment.config
    config.live.append("v1")
    asked = [asyncio.create_task(deployment.reload(version)) for version in (None, "v1", None, "v2", "v1", "v2")]
    await until(lambda: config.log == ["begin v1"])
    config.gate.set()
    done = await asyncio.gather(*asked)
    assert config.log == ["begin v1", "end v1", "begin v2", "end v2"]
    assert [(d.version, d.changed) for d in done] == [("v1", True)] * 3 + [("v2", True), ("v1", True), ("v2", True)]
    assert (deployment.engine.version, deployment.reloaded) == ("v2", 2)


async def test_only_so_many_wait(deployment: Any) -> None:
    waiting = [asyncio.create_task(deployment.reload(f"w{i}")) for i in range(3)]
    await asyncio.sleep(0.05)
    with pytest.raises(OverloadedError):
        await deployment.reload("one more")
    deployment.config.gate.set()
    await asyncio.gather(*waiting)


async def test_what_nobody_waits_for_any_more_stops(deployment: Any, until: Any) -> None:
    config = deployment.config
    first = asyncio.create_task(deployment.reload("v1"))
    second, third = (asyncio.create_task(deployment.reload("v1")) for _ in range(2))
    queued = asyncio.create_task(deployment.reload("v2"))
    await until(lambda: config.log == ["begin v1"])
    await asyncio.sleep(0.02)
    for task in (first, second):
        task.cancel()
    queued.cancel()
    await asyncio.sleep(0.05)
    assert not third.done()
    third.cancel()
    # The loading thread sees it at its next step, and v2 is begun, seen to be wanted by nobody, and left.
    await until(lambda: not deployment._changing.locked())
    assert "end v1" not in config.log
    assert "end v2" not in config.log
    config.gate.set()
    assert (await deployment.reload("v3")).version == "v3"
    assert deployment.refused == 0


async def test_a_broken_version_leaves_the_old_one(deployment: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = deployment.config
    config.gate.set()
    with pytest.raises(ArtifactError, match="it is broken"):
        await deployment.reload("broken")
    assert (deployment.engine.version, deployment.refused) == ("v0", 1)
    config.live.append("broken")
    assert not await reload_unasked(deployment, "signal")
    assert "the old version goes on answering: it is broken" in caplog.text
    config.live.append("v1")
    assert await reload_unasked(deployment, "signal")
    assert deployment.engine.version == "v1"


async def test_another_version_that_goes_live_is_loaded(deployment: Any, until: Any) -> None:
    config = deployment.config
    config.gate.set()
    watching = asyncio.create_task(watch(deployment, 0.01))
    config.live.append("broken")
    await until(lambda: deployment.refused == 1)
    await asyncio.sleep(0.1)
    assert config.log.count("begin broken") == 1  # not again and again
    config.live.append("v1")
    await until(lambda: deployment.engine.version == "v1")
    watching.cancel()


async def test_an_index_whose_files_were_flipped_is_refused_by_a_running_server(
    serve: Any, own_tiny: Any, publish: Any
) -> None:
    """No crash, the reason, and the old version goes on; also where a native loader would have followed the bytes."""
    from cbir.v1 import search_pb2 as pb

    config = EngineConfig(own_tiny.index, device="cpu", runtime="torch")
    async with serve(config=config) as running:
        new = publish(own_tiny.index)
        file = own_tiny.index / "versions" / new / "members/convnext/embeddings.npy"
        data = bytearray(file.read_bytes())
        for place in range(128, len(data), 5):
            data[place] ^= 0xFF
        file.unlink()
        file.write_bytes(data)
        assert not await reload_unasked(running.server.deployment, "signal")
        answer = await running.search.Search(pb.SearchRequest(query=pb.Query(image_id="twin")))
        assert answer.index_version == own_tiny.version


def test_the_memory_of_two_versions_is_counted_first(tiny: Any, tmp_path: Path) -> None:
    version = IndexStore(tiny.index).open()
    spec = version.manifest.ensemble
    sizes = sum(int(facts["size"]) for facts in version.manifest.files.values())
    weights = sum(m.weights_file.stat().st_size for m in spec.members if m.weights_file)
    known = {str(facts["fingerprint"]) for facts in version.manifest.members.values()}
    shared, whole = needed_bytes(version, spec, known), needed_bytes(version, spec, set())
    assert 3 * sizes <= shared <= 8 * sizes
    assert whole == shared + 3 * weights
    check_memory(version, spec, known, None)
    check_memory(version, spec, known, 2 * shared)
    with pytest.raises(ConfigurationError, match="MiB are free") as caught:
        check_memory(version, spec, known, shared)
    assert caught.value.reason == "MEMORY_SHORT"


def test_free_memory_is_that_of_the_container(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 99 kB\nMemAvailable:    2000 kB\n")
    assert available_bytes(tmp_path) == 2000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("600\n")
    (group / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path) == 2000 * 1024
    (group / "memory.max").write_text("1000\n")
    assert available_bytes(tmp_path) == 400
    assert available_bytes(tmp_path / "none") is None
    assert os.name == "nt" or (available_bytes() or 1) > 0
