"""Answers from memory, and equal queries that are answered together."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2

from cbir.core.errors import QueryError
from cbir.server.queue.cache import AnswerCache
from cbir.server.transport import wire
from cbir.v1 import admin_pb2
from cbir.v1 import search_pb2 as pb


def image(data: bytes, **options: Any) -> pb.SearchRequest:
    return pb.SearchRequest(query=pb.Query(image=data), options=pb.SearchOptions(**options))


def test_the_oldest_answers_make_room() -> None:
    cache = AnswerCache(3, 10_000)
    cache.serve("v1")
    for key in (b"a", b"b", b"c"):
        cache.put("v1", key, key * 10)
    assert cache.get("v1", b"a") == b"a" * 10  # asked for again, so that b is the oldest now
    cache.put("v1", b"d", b"d" * 10)
    assert [cache.get("v1", key) for key in (b"a", b"b", b"c", b"d")] == [b"a" * 10, None, b"c" * 10, b"d" * 10]
    assert (len(cache), cache.hits, cache.misses, cache.evictions) == (3, 4, 1, 1)
    assert cache.bytes == 3 * (10 + 256)


def test_it_is_bounded_in_bytes() -> None:
    cache = AnswerCache(100, 1000)
    cache.serve("v1")
    cache.put("v1", b"a", bytes(200))
    cache.put("v1", b"b", bytes(200))
    assert (len(cache), cache.bytes) == (2, 912)
    cache.put("v1", b"a", bytes(300))  # replaced, not added
    assert (len(cache), cache.bytes, cache.evictions) == (1, 556, 1)
    cache.put("v1", b"c", bytes(1000))  # too large to be worth all the others
    assert (cache.get("v1", b"c"), len(cache)) == (None, 1)


def test_no_answer_outlives_its_version() -> None:
    cache = AnswerCache(10, 10_000)
    cache.serve("v1")
    cache.put("v1", b"a", b"old")
    cache.serve("v1")
    assert cache.get("v1", b"a") == b"old"
    cache.serve("v2")
    assert (len(cache), cache.bytes) == (0, 0)
    assert cache.get("v2", b"a") is None
    cache.put("v1", b"a", b"late")  # a query that began before the change
    assert cache.get("v1", b"a") is None
    assert cache.get("v2", b"a") is None


def test_it_can_be_turned_off() -> None:
    assert not AnswerCache(0, 1000)
    assert AnswerCache(1, 1000)


def key(request: pb.SearchRequest) -> bytes:
    return wire.Question.read(request.SerializeToString()).fingerprint()


def test_queries_differ_by_all_that_is_asked() -> None:
    embedding = pb.EnsembleEmbedding(vectors={"a": pb.Vector(values=[1, 2]), "b": pb.Vector(values=[3])})
    other = pb.EnsembleEmbedding(vectors={"a": pb.Vector(values=[1, 2]), "b": pb.Vector(values=[4])})
    different = [
        image(b"1"),
        image(b"2"),
        image(b"1", limit=5),
        image(b"1", min_score=0),
        image(b"1", crop=pb.CROP_NONE),
        image(b"1", exclude_query=True),
        image(b"1", weights={"a": 1}),
        image(b"1", weights={"a": 2}),
        image(b"1", filter=pb.Filter(labels=["a", "b"])),
        image(b"1", filter=pb.Filter(labels=["ab"])),
        pb.SearchRequest(query=pb.Query(image=b"1", positive_ids=["x"])),
        pb.SearchRequest(query=pb.Query(image=b"1", negative_ids=["x"])),
        pb.SearchRequest(query=pb.Query(image_id="1")),
        pb.SearchRequest(query=pb.Query(text="1")),
        pb.SearchRequest(query=pb.Query(embedding=embedding)),
        pb.SearchRequest(query=pb.Query(embedding=other)),
    ]
    keys = [key(request) for request in different]
    assert len(set(keys)) == len(keys)
    assert keys == [key(request) for request in different]
    # Maps have no order.
    turned = pb.EnsembleEmbedding(vectors=dict(reversed(list(embedding.vectors.items()))))
    assert key(pb.SearchRequest(query=pb.Query(embedding=turned))) == keys[14]


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 16_383, 16_384, 2_200_000])
def test_answers_of_streams_are_framed_as_protobuf_does_it(size: int) -> None:
    response = pb.SearchResponse(index_version="v" * size)
    framed = wire.stream_answer("name", response.SerializeToString())
    assert framed == pb.SearchStreamResponse(request_id="name", response=response).SerializeToString()
    error = status_pb2.Status(code=3, message="x" * size)
    parsed = pb.SearchStreamResponse.FromString(wire.stream_error("", error))
    assert (parsed.WhichOneof("outcome"), parsed.error) == ("error", error)


def test_what_is_no_message_is_refused_by_name() -> None:
    with pytest.raises(QueryError, match="the 3 bytes of the request are no SearchRequest") as caught:
        wire.Question.read(b"\xff\xff\xff")
    assert caught.value.reason == "BAD_MESSAGE"


async def test_a_repeated_query_is_answered_from_memory(serve: Any, gated: Any, tiny: Any) -> None:
    gate, engine = gated
    gate.gate.set()
    request = image(tiny.bytes_of("red-rings-1"))
    async with serve(engine=engine, cache_entries=10) as running:
        cache = running.server.pipeline.cache
        first = await running.search.Search(request)
        again = await running.search.Search(request)
        assert first.HasField("timings")
        # Nothing took any time, and none is made up.
        assert not again.HasField("timings")
        first.ClearField("timings")
        assert again == first
        assert gate.batches == [1]
        stream = running.search.SearchStream()
        await stream.write(pb.SearchStreamRequest(request_id="x", request=request))
        assert (await stream.read()).response == first
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        await running.search.Search(image(tiny.bytes_of("red-rings-1"), limit=3))
        assert gate.batches == [1, 1]
        assert (cache.hits, cache.misses, len(cache)) == (2, 2, 2)
        assert running.server.pipeline.streams.used == 0


async def test_large_images_are_remembered_too(serve: Any, tiny: Any) -> None:
    data = tiny.bytes_of("red-rings-1") + bytes(300_000)  # what follows the end of a PNG is ignored
    async with serve(cache_entries=10) as running:
        answers = [await running.search.Search(image(data)) for _ in range(2)]
        assert [answer.HasField("timings") for answer in answers] == [True, False]
        assert answers[0].hits == answers[1].hits
        pipeline = running.server.pipeline
        assert (pipeline.cache.hits, pipeline.admission.used, pipeline.admission.used_bytes) == (1, 0, 0)


async def test_refusals_are_not_remembered(serve: Any, failure: Any) -> None:
    async with serve(cache_entries=10) as running:
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.search.Search(image(b"no picture"))
            assert failure(caught.value).reason == "IMAGE_FORMAT"
        assert len(running.server.pipeline.cache) == 0
        assert running.server.pipeline.forecast.under_way == 0


async def test_equal_queries_under_way_share_one_forward_pass(serve: Any, gated: Any, tiny: Any, until: Any) -> None:
    gate, engine = gated
    request = image(tiny.bytes_of("red-rings-1"))
    async with serve(engine=engine, cache_entries=10) as running:
        pipeline = running.server.pipeline
        held = asyncio.ensure_future(running.search.Search(image(tiny.bytes_of("blue-rings-1"))))
        await asyncio.to_thread(gate.entered.wait, 10)
        calls = [running.search.Search(request) for _ in range(4)]
        stream = running.search.SearchStream()
        await stream.write(pb.SearchStreamRequest(request_id="x", request=request))
        await until(lambda: pipeline.tally.joined == 4)
        assert pipeline.forecast.under_way == 2
        # Whoever came first leaves; the others go on waiting, and one more of them leaves.
        calls[0].cancel()
        calls[2].cancel()
        await until(lambda: calls[0].done() and calls[2].done())
        assert pipeline.forecast.under_way == 2
        gate.gate.set()
        assert (await held).hits
        answers = [await calls[1], await calls[3], (await stream.read()).response]
        assert [answer.hits[0].image_id for answer in answers] == ["red-rings-1"] * 3
        assert gate.batches == [1, 1]
        assert pipeline.tally.cancelled == 0


async def test_a_shared_query_is_dropped_when_all_have_left(serve: Any, gated: Any, tiny: Any, until: Any) -> None:
    gate, engine = gated
    request = image(tiny.bytes_of("red-rings-1"))
    async with serve(engine=engine, cache_entries=10) as running:
        pipeline = running.server.pipeline
        held = asyncio.ensure_future(running.search.Search(image(tiny.bytes_of("blue-rings-1"))))
        await asyncio.to_thread(gate.entered.wait, 10)
        calls = [running.search.Search(request) for _ in range(3)]
        await until(lambda: pipeline.tally.joined == 2)
        for call in calls:
            call.cancel()
        await until(lambda: pipeline.forecast.under_way == 1)
        # The next one starts anew.
        late = asyncio.ensure_future(running.search.Search(request))
        await until(lambda: pipeline.forecast.under_way == 2)
        gate.gate.set()
        assert (await held).hits
        assert (await late).hits
        assert gate.batches == [1, 1]
        assert pipeline.tally.cancelled == 1


async def test_another_version_answers_for_itself(serve: Any, own_tiny: Any, publish: Any) -> None:
    from cbir.server.deployment import EngineConfig
    from cbir.server.limits import Limits

    config = EngineConfig(own_tiny.index, device="cpu", runtime="torch", limits=Limits(max_batch=2, cache_entries=9))
    request = pb.SearchRequest(query=pb.Query(image_id="twin"))
    async with serve(config=config) as running:
        before = [await running.search.Search(request) for _ in range(2)]
        new = publish(own_tiny.index)
        await running.admin.ReloadIndex(admin_pb2.ReloadIndexRequest())
        after = [await running.search.Search(request) for _ in range(2)]
        assert [a.index_version for a in (*before, *after)] == [own_tiny.version] * 2 + [new] * 2
        assert [a.HasField("timings") for a in (*before, *after)] == [True, False] * 2
        assert after[1].hits[1].votes[0].contribution != before[1].hits[1].votes[0].contribution
