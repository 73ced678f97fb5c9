"""Attacks by one caller: each ends with the right status, leaves nothing behind, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import hostile_images
import numpy as np
import pytest
from half_sent import RawConnection

from cbir.core.artifacts import IndexStore
from cbir.core.images import DecodedImage, DecodeLimits, DecodingPool, InProcessDecoder
from cbir.core.search import Retriever
from cbir.server.engine import Engine, EngineQuery
from cbir.server.engine.picture import Picture
from cbir.server.limits import Limits
from cbir.v1 import search_pb2 as pb


def image(data: bytes) -> pb.SearchRequest:
    return pb.SearchRequest(query=pb.Query(image=data))


@pytest.fixture(scope="module")
def apart(tiny: Any, engine: Engine) -> Iterator[tuple[Engine, DecodingPool]]:
    """An engine whose images are decoded by workers, which have half a second for each."""
    opened = IndexStore(tiny.index).open()
    with DecodingPool(2, seconds=0.5, niceness=0) as pool:
        yield Engine(opened, Retriever.load(opened, "cpu"), engine.embedders, Limits(), decoder=pool), pool


HOSTILE = {
    "scans": (lambda: hostile_images.many_scans(27_000, 64, 48), "IMAGE_TOO_COSTLY"),
    "segments": (lambda: hostile_images.many_segments(10 * 2**20), "IMAGE_TOO_COSTLY"),
    "bmp": (lambda: hostile_images.skipping_bmp(1_000_000, 100), "IMAGE_TOO_COSTLY"),
    "png16": (lambda: hostile_images.deep_png(9999, 9999), "IMAGE_TOO_COSTLY"),
    "tiff": (lambda: hostile_images.float_tiff(4000, 4000), None),
    "fax": (lambda: hostile_images.garbled_fax(), None),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_images_cost_their_own_request(
    name: str, serve: Any, apart: tuple[Engine, DecodingPool], tiny: Any, failure: Any
) -> None:
    make, reason = HOSTILE[name]
    data = await asyncio.to_thread(make)
    async with serve(engine=apart[0]) as running:

        async def attack() -> None:
            try:
                await running.search.Search(image(data))
            except grpc.aio.AioRpcError as error:
                taken = failure(error)
                assert (taken.code, taken.field) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "query.image")
                assert reason in (None, taken.reason)
            else:
                assert reason is None

        attacks = [asyncio.create_task(attack()) for _ in range(2)]
        served = 0
        while not all(task.done() for task in attacks) or served < 5:
            answer = await running.search.Search(image(tiny.bytes_of("twin")))
            assert answer.hits[0].score > 0.9
            served += 1
        await asyncio.gather(*attacks)
        pipeline = running.server.pipeline
        assert (pipeline.forecast.under_way, pipeline.slow.used, pipeline.admission.used) == (0, 0, 0)


async def test_an_idle_server_does_not_decode_on_the_engines_thread(serve: Any, tiny: Any, engine: Engine) -> None:
    decoded_on: list[str] = []

    class Watched(InProcessDecoder):
        def decode(self, data: bytes, limits: DecodeLimits, go_on: Callable[[], bool] | None = None) -> DecodedImage:
            decoded_on.append(threading.current_thread().name)
            return super().decode(data, limits, go_on)

    opened = IndexStore(tiny.index).open()
    watched = Engine(opened, Retriever.load(opened, "cpu"), engine.embedders, Limits(), decoder=Watched())
    large = hostile_images.deep_png(1500, 1500, depth=8)
    async with serve(engine=watched) as running:
        for data in (tiny.bytes_of("twin"), large):
            assert (await running.search.Search(image(data))).hits
    assert [name.rpartition("-")[0] for name in decoded_on] == ["cbir-decode", "cbir-slow"]


async def test_an_image_whose_caller_is_gone_is_decoded_no_further(
    serve: Any, apart: tuple[Engine, DecodingPool], until: Any
) -> None:
    engine, pool = apart
    async with serve(engine=engine) as running:
        bomb = hostile_images.skipping_bmp(1_000_000, 100)
        call = running.search.Search(image(bomb))
        await until(lambda: pool._busy[True] == 1)
        call.cancel()
        await until(lambda: pool._busy[True] == 0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.search.Search(image(bomb), timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: pool._busy[True] == 0)
        await until(lambda: running.server.pipeline.forecast.under_way == 0)


async def test_a_refused_request_leaves_nothing_behind(serve: Any, tiny: Any) -> None:
    """Not even until the garbage collector comes: in a server it seldom looks at what is old."""
    wrong = pb.SearchRequest()
    for i in range(500):
        wrong.query.embedding.vectors[f"member {i}"].values.append(1.0)
    cut, greedy = image(hostile_images.jpeg()[:300]), image(tiny.bytes_of("twin"))
    bad = [wrong, image(b"no picture"), cut, pb.SearchRequest(), greedy]
    bad[-1].options.limit = 10**6

    async def stream() -> AsyncIterator[pb.SearchStreamRequest]:
        for i, request in enumerate(bad):
            yield pb.SearchStreamRequest(request_id=str(i), request=request)

    async with serve() as running:
        gc.collect()
        # Other tests may have queries of their own in this process.
        others = [found for found in gc.get_objects() if type(found) is EngineQuery]
        gc.disable()
        try:
            for request in bad:
                with pytest.raises(grpc.aio.AioRpcError):
                    await running.search.Search(request)
            answers = [answer async for answer in running.search.SearchStream(stream())]
            assert all(answer.HasField("error") for answer in answers)
            # A good one goes through all places where the last one may be kept.
            assert (await running.search.Search(image(tiny.bytes_of("twin")))).hits
            await asyncio.sleep(0.01)
            queries = [found for found in gc.get_objects() if type(found) is EngineQuery]
            left = [found for found in queries if not any(found is other for other in others)]
            assert len(left) <= 1, [type(found.source) for found in left]
        finally:
            gc.enable()


async def test_slow_readers_of_pictures_leave_room_for_others(
    serve: Any, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    data = np.random.default_rng(0).bytes(300_000)
    monkeypatch.setattr("cbir.server.transport.service.read_picture", lambda *_: Picture(data, "image/x"))
    request = pb.GetImageRequest(image_id="twin")
    async with serve(downloads=6, write_seconds=1.0) as running:
        downloads = running.server._search._downloads
        # From another address: of one address, further connections get no further share.
        raw = await asyncio.to_thread(RawConnection, running.server.port, "127.0.0.2")
        streams = [raw.call("GetImage") for _ in range(20)]
        for stream in streams:
            raw.ask(stream, request.SerializeToString())
        await until(lambda: downloads.refused > 0)
        held = downloads.used
        assert 0 < held < 6
        for _ in range(3):
            chunks = [part.chunk async for part in running.search.GetImage(request)]
            assert b"".join(chunks) == data
        # Calls whose answers nobody reads cannot be ended before their connection is, but they hold no room.
        await until(lambda: downloads.used == 0)
        await asyncio.to_thread(raw.receive, 0.1)
        raw.close()
        assert set(raw.statuses.values()) == {"8"}
