"""Streams, cancellation, deadlines and overload, with a model that is held up by a gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from cbir.v1 import search_pb2 as pb
from cbir.v1 import search_pb2_grpc


def item(request_id: str, *, image: bytes | None = None, image_id: str | None = None) -> pb.SearchStreamRequest:
    query = pb.Query(image=image) if image is not None else pb.Query(image_id=image_id)
    return pb.SearchStreamRequest(request_id=request_id, request=pb.SearchRequest(query=query))


def image(data: bytes) -> pb.SearchRequest:
    return pb.SearchRequest(query=pb.Query(image=data))


async def test_a_stream_answers_everything_with_its_id(serve: Any, tiny: Any, failure: Any) -> None:
    async def requests() -> AsyncIterator[pb.SearchStreamRequest]:
        for i in range(100):
            if i % 10 == 3:
                yield item(f"bad-{i}", image=b"no picture")
            elif i % 2:
                yield item(f"bytes-{i}", image=tiny.bytes_of("red-rings-1"))
            else:
                yield item(f"id-{i}", image_id="blue-rings-1")

    async with serve(window=8) as running:
        answers = {a.request_id: a async for a in running.search.SearchStream(requests())}
        assert len(answers) == 100
        for name, answer in answers.items():
            if name.startswith("bad"):
                taken = failure(answer.error)
                assert (taken.code, taken.reason) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "IMAGE_FORMAT")
            else:
                wanted = "red-rings-1" if name.startswith("bytes") else "blue-rings-1"
                assert answer.response.hits[0].image_id == wanted
        # The same words as from the unary call.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.search.Search(image(b"no picture"))
        assert failure(caught.value) == failure(answers["bad-3"].error)
        assert running.server.pipeline.forecast.under_way == 0


async def test_answers_come_as_they_are_ready_and_the_window_is_bounded(
    serve: Any, gated: Any, tiny: Any, until: Any
) -> None:
    gate, engine = gated
    async with serve(engine=engine, window=3) as running:
        call = running.search.SearchStream()
        await call.write(item("bad", image=b"junk"))
        # A picture waits at the gate; what needs no model and no batch overtakes it.
        await call.write(item("held", image=tiny.bytes_of("twin")))
        assert (await call.read()).request_id == "bad"
        await asyncio.to_thread(gate.entered.wait, 10)
        for i in range(6):
            await call.write(item(f"{i}", image_id="twin"))
        await call.done_writing()
        await until(lambda: running.server.pipeline.forecast.under_way == 3)
        await asyncio.sleep(0.05)
        assert running.server.pipeline.forecast.under_way == 3
        gate.gate.set()
        assert {(await call.read()).request_id for _ in range(7)} == {"held", *map(str, range(6))}
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_client_that_leaves_an_idle_stream_is_no_error(serve: Any, until: Any) -> None:
    async with serve() as running:
        stream = running.search.SearchStream()
        await stream.write(item("1", image_id="twin"))
        assert (await stream.read()).request_id == "1"
        stream.cancel()
        other = grpc.aio.insecure_channel(running.server.address)
        abandoned = search_pb2_grpc.SearchServiceStub(other).SearchStream()
        for i in range(200):
            await abandoned.write(item(str(i), image_id="twin"))
        await other.close()
        await until(lambda: running.server.pipeline.forecast.under_way == 0)


async def test_a_cancelled_call_never_reaches_the_model(serve: Any, gated: Any, tiny: Any, until: Any) -> None:
    gate, engine = gated
    async with serve(engine=engine) as running:
        pipeline = running.server.pipeline
        first = asyncio.ensure_future(running.search.Search(image(tiny.bytes_of("twin"))))
        await asyncio.to_thread(gate.entered.wait, 10)
        calls = [running.search.Search(image(tiny.bytes_of("twin"))) for _ in range(5)]
        stream = running.search.SearchStream()
        for i in range(3):
            await stream.write(item(str(i), image=tiny.bytes_of("twin")))
        await until(lambda: pipeline.forecast.under_way == 9)
        await asyncio.sleep(0.05)  # all are decoded and wait for the engine
        for call in (*calls, stream):
            call.cancel()
        await until(lambda: pipeline.forecast.under_way == 1)
        gate.gate.set()
        assert (await first).hits
        assert (await running.search.Search(image(tiny.bytes_of("twin")))).hits
        assert gate.batches == [1, 1]
        assert pipeline.tally.cancelled == 8


async def test_an_expired_call_never_reaches_the_model(serve: Any, gated: Any, tiny: Any, until: Any) -> None:
    gate, engine = gated
    async with serve(engine=engine) as running:
        first = asyncio.ensure_future(running.search.Search(image(tiny.bytes_of("twin"))))
        await asyncio.to_thread(gate.entered.wait, 10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.search.Search(image(tiny.bytes_of("twin")), timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: running.server.pipeline.forecast.under_way == 1)
        gate.gate.set()
        assert (await first).hits
        await running.search.Search(image(tiny.bytes_of("twin")))
        assert gate.batches == [1, 1]
        counts = running.server.pipeline.tally
        assert counts.cancelled + counts.expired == 1


async def test_overload_is_refused_at_once_with_a_time_to_retry(
    serve: Any, gated: Any, tiny: Any, until: Any, failure: Any
) -> None:
    gate, engine = gated
    async with serve(engine=engine, queue=4) as running:
        admitted = [asyncio.ensure_future(running.search.Search(image(tiny.bytes_of("twin")))) for _ in range(4)]
        await until(lambda: running.server.pipeline.forecast.under_way == 4)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.search.Search(image(tiny.bytes_of("twin")), timeout=5)
        taken = failure(caught.value)
        assert (taken.code, taken.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "OVERLOADED")
        assert taken.retry_after is not None
        assert 0.05 <= taken.retry_after <= 60
        # In a stream: in band, and the stream goes on.
        stream = running.search.SearchStream()
        await stream.write(item("1", image_id="twin"))
        assert failure((await stream.read()).error).reason == "OVERLOADED"
        gate.gate.set()
        assert all(a.hits for a in await asyncio.gather(*admitted))
        await stream.write(item("2", image_id="twin"))
        assert (await stream.read()).response.hits
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert running.server.pipeline.admission.refused == 2


async def test_what_waits_is_batched(serve: Any, gated: Any, tiny: Any, until: Any) -> None:
    gate, engine = gated
    async with serve(engine=engine, max_batch=4) as running:
        first = asyncio.ensure_future(running.search.Search(image(tiny.bytes_of("twin"))))
        await asyncio.to_thread(gate.entered.wait, 10)
        names = [f"red-rings-{i % 4}" for i in range(6)]
        others = [asyncio.ensure_future(running.search.Search(image(tiny.bytes_of(name)))) for name in names]
        await until(lambda: running.server.pipeline.forecast.under_way == 7)
        await asyncio.sleep(0.1)
        gate.gate.set()
        await first
        assert [(await other).hits[0].image_id for other in others] == names
        assert gate.batches == [1, 4, 2]
