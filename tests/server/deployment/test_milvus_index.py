"""A server over an index whose vectors are in Milvus: publishing beside it, and Milvus that goes away."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from cbir.core.ensemble import load_ensemble
from cbir.core.errors import ConfigurationError
from cbir.core.vote import VoteSettings
from cbir.server.deployment import EngineConfig
from cbir.v1 import admin_pb2
from cbir.v1 import search_pb2 as pb

pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")


@pytest.fixture(scope="module")
def remote(make_tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("milvus")
    return make_tiny(folder, str(folder / "milvus.db"))


def config(remote: Any) -> EngineConfig:
    return EngineConfig(remote.index, device="cpu", runtime="torch", store=remote.vectors)


async def test_publishing_while_a_server_searches_fails_no_request(serve: Any, remote: Any, build: Any) -> None:
    request = pb.SearchRequest(query=pb.Query(image_id="twin"))
    seen: list[str] = []
    done = asyncio.Event()

    async with serve(config=config(remote)) as running:

        async def search() -> None:
            while not done.is_set():
                answer = await running.search.Search(request)
                assert len(answer.hits) == 10
                seen.append(answer.index_version)

        searching = [asyncio.create_task(search()) for _ in range(2)]
        versions = [remote.version]
        for weight in (3.0, 5.0):
            vote = VoteSettings({"resnet": weight, "convnext": 1.0})
            spec = load_ensemble(remote.ensemble)
            versions.append(await asyncio.to_thread(build, remote.index, remote.pictures, spec, vote, remote.vectors))
            reloaded = await running.admin.ReloadIndex(admin_pb2.ReloadIndexRequest())
            assert reloaded.version == versions[-1]
        answered = len(seen)
        async with asyncio.timeout(30):
            while len(seen) < answered + 4:  # noqa: ASYNC110 - what is waited for knows no events
                await asyncio.sleep(0.01)
        done.set()
        await asyncio.gather(*searching)
    assert list(dict.fromkeys(seen)) == versions


async def test_milvus_that_is_away_is_unavailable_and_found_again(
    serve: Any, remote: Any, failure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from milvus_lite.server_manager import server_manager_instance

    monkeypatch.setattr("cbir.core.milvus.connection._PAUSE_SECONDS", 0.1)
    async with serve(config=config(remote)) as running:
        monkeypatch.setattr("cbir.core.milvus.connection._CALL_SECONDS", 1.0)
        await asyncio.to_thread(server_manager_instance.release_server, str(Path(remote.index).parent / "milvus.db"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.search.Search(pb.SearchRequest(query=pb.Query(image_id="twin")))
        told = failure(caught.value)
        assert (caught.value.code(), told.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        monkeypatch.setattr("cbir.core.milvus.connection._CALL_SECONDS", 30.0)
        async with asyncio.timeout(60):
            while True:
                try:
                    answer = await running.search.Search(pb.SearchRequest(query=pb.Query(image_id="twin")))
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.1)
    assert len(answer.hits) == 10


def test_without_the_address_the_server_says_what_is_missing(remote: Any) -> None:
    with pytest.raises(ConfigurationError, match="say where that is with --milvus-uri"):
        replace(config(remote), store=None).load()
