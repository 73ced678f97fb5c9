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
        assert counts.processed == 2


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
        gate.gate.set()
        assert all(a.hits for a in await asyncio.gather(*admitted))
        assert (await running.search.Search(image(tiny.bytes_of("twin")))).hits
        assert sum(gate.batches) == 5
        assert running.server.pipeline.admission.refused == 1
        assert running.server.pipeline.tally.outcomes["refused", "OVERLOADED"] == 1


async def test_streams_wait_for_room_and_take_none_from_others(serve: Any, gated: Any, tiny: Any, until: Any) -> None:
    gate, engine = gated
    async with serve(engine=engine, queue=4, window=8) as running:
        pipeline = running.server.pipeline
        streams = [running.search.SearchStream() for _ in range(3)]
        for stream in streams:
            for i in range(8):
                await stream.write(item(str(i), image=tiny.bytes_of("twin")))
            await stream.done_writing()
        await until(lambda: pipeline.streams.used == 2)
        await asyncio.to_thread(gate.entered.wait, 10)
        await asyncio.sleep(0.05)
        # Half of the queue is theirs; the rest of their queries waits in the clients, all but one of each.
        assert pipeline.forecast.under_way == 2
        others = [asyncio.ensure_future(running.search.Search(image(tiny.bytes_of("twin")))) for _ in range(4)]
        await until(lambda: pipeline.admission.used == 4)
        gate.gate.set()
        assert all(a.hits for a in await asyncio.gather(*others))
        for stream in streams:
            assert sorted([answer.request_id async for answer in stream]) == [str(i) for i in range(8)]
        assert (pipeline.streams.used, pipeline.admission.used, pipeline.admission.refused) == (0, 0, 0)


async def test_a_stream_that_is_left_while_it_waits_for_room_holds_none(
    serve: Any, gated: Any, tiny: Any, until: Any
) -> None:
    gate, engine = gated
    async with serve(engine=engine, queue=2) as running:
        pipeline = running.server.pipeline
        streams = [running.search.SearchStream() for _ in range(3)]
        for stream in streams:
            await stream.write(item("1", image=tiny.bytes_of("twin")))
            await asyncio.sleep(0.05)
        assert pipeline.streams.used == 1
        streams[1].cancel()
        gate.gate.set()
        assert (await streams[0].read()).response.hits
        assert (await streams[2].read()).response.hits
        assert pipeline.streams.used == 0


async def test_a_client_that_floods_the_queue_does_not_keep_others_waiting(
    serve: Any, gated: Any, tiny: Any, until: Any
) -> None:
    gate, engine = gated
    order: list[str] = []

    async def ask(running: Any, name: str, data: bytes) -> None:
        call = running.search.Search(image(data), metadata=(("x-client-id", name),))
        assert (await call).hits
        order.append(name)

    async with serve(engine=engine, max_batch=1, decoders=1) as running:
        first = asyncio.ensure_future(running.search.Search(image(tiny.bytes_of("twin"))))
        await asyncio.to_thread(gate.entered.wait, 10)
        flood = [asyncio.create_task(ask(running, "flood", tiny.bytes_of("red-rings-1"))) for _ in range(20)]
        await until(lambda: running.server.pipeline.forecast.under_way == 21)
        late = [asyncio.create_task(ask(running, name, tiny.bytes_of("twin"))) for name in ("late", "later")]
        await until(lambda: running.server.pipeline.forecast.under_way == 23)
        gate.gate.set()
        await asyncio.gather(first, *flood, *late)
    # At most three of the flood were decoded already, and then it is turn and turn about.
    assert max(order.index("late"), order.index("later")) <= 7


async def test_what_cannot_be_answered_in_time_is_refused_at_once(
    serve: Any, gated: Any, tiny: Any, until: Any, failure: Any
) -> None:
    gate, engine = gated
    async with serve(engine=engine) as running:
        pipeline = running.server.pipeline
        pipeline.forecast.heavy.seconds_each = 100.0
        first = asyncio.ensure_future(running.search.Search(image(tiny.bytes_of("twin")), timeout=30))
        await asyncio.to_thread(gate.entered.wait, 10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.search.Search(image(tiny.bytes_of("twin")), timeout=30)
        taken = failure(caught.value)
        assert (taken.code, taken.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "DEADLINE_UNREACHABLE")
        # Later than its deadline: a client that heeds it gives up, and does not add to the load.
        assert taken.retry_after is not None
        assert taken.retry_after > 30
        patient = asyncio.ensure_future(running.search.Search(image(tiny.bytes_of("twin"))))
        await until(lambda: pipeline.forecast.under_way == 2)
        gate.gate.set()
        assert (await first).hits
        assert (await patient).hits
        assert gate.batches == [1, 1]


async def test_what_cannot_be_in_time_at_all_is_refused_unread(
    serve: Any, gated: Any, tiny: Any, failure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cbir.server.transport.intake import Intake

    gate, engine = gated
    read: list[object] = []
    read_one = Intake.read_one

    async def counted(self: Intake, context: Any, lane: Any) -> bytes:
        read.append(lane)
        return await read_one(self, context, lane)

    monkeypatch.setattr(Intake, "read_one", counted)
    async with serve(engine=engine) as running:
        running.server.pipeline.forecast.light.seconds_each = 100.0
        first = asyncio.ensure_future(running.search.Search(image(tiny.bytes_of("twin")), timeout=30))
        await asyncio.to_thread(gate.entered.wait, 10)
        assert len(read) == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.search.Search(image(tiny.bytes_of("twin")), timeout=30)
        assert failure(caught.value).reason == "DEADLINE_UNREACHABLE"
        assert failure(caught.value).retry_after > 30
        assert len(read) == 1
        gate.gate.set()
        assert (await first).hits


async def test_one_connection_has_only_so_many_calls_at_a_time(serve: Any, gated: Any, tiny: Any, until: Any) -> None:
    gate, engine = gated
    async with serve(engine=engine, streams_per_connection=4) as running:
        pipeline = running.server.pipeline
        calls = [asyncio.ensure_future(running.search.Search(image(tiny.bytes_of("twin")))) for _ in range(12)]
        await until(lambda: pipeline.forecast.under_way == 4)
        await asyncio.sleep(0.2)
        assert pipeline.forecast.under_way == 4
        gate.gate.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    # The others waited in the client, or were refused by HTTP/2 before they began: none was half done.
    assert {error.code() for error in refused} <= {grpc.StatusCode.UNAVAILABLE}
    assert len(answers) - len(refused) >= 4
    assert pipeline.tally.processed == len(answers) - len(refused)


async def test_our_client_gives_up_at_once_on_what_cannot_be_in_time(serve: Any, gated: Any, tiny: Any) -> None:
    from cbir.client._async_client import AsyncClient
    from cbir.client._errors import Overloaded

    gate, engine = gated
    async with serve(engine=engine) as running, AsyncClient(running.server.address, timeout=30) as client:
        running.server.pipeline.forecast.heavy.seconds_each = 100.0
        first = asyncio.ensure_future(client.search(tiny.bytes_of("twin")))
        await asyncio.to_thread(gate.entered.wait, 10)
        with pytest.raises(Overloaded) as caught:
            await client.search(tiny.bytes_of("twin"))
        assert caught.value.reason == "DEADLINE_UNREACHABLE"
        assert running.server.pipeline.tally.outcomes["refused", "DEADLINE_UNREACHABLE"] == 1
        gate.gate.set()
        assert (await first).hits


async def test_what_expires_undecoded_is_never_decoded(serve: Any, gated: Any, tiny: Any, until: Any) -> None:
    gate, engine = gated
    decoded: list[int] = []
    async with serve(engine=engine, max_batch=1, decoders=1) as running:
        pipeline = running.server.pipeline
        engine = running.server.deployment.engine
        prepare = engine.prepare
        engine.prepare = lambda *query: decoded.append(1) or prepare(*query)
        pipeline.forecast.heavy.seconds_each = pipeline.forecast.decode.seconds_each = 0.0
        first = asyncio.ensure_future(running.search.Search(image(tiny.bytes_of("twin"))))
        await asyncio.to_thread(gate.entered.wait, 10)
        calls = [asyncio.ensure_future(running.search.Search(image(tiny.bytes_of("twin")))) for _ in range(3)]
        # As many as there is room for, the one at the engine among them.
        await until(lambda: len(decoded) == 3)
        late = [running.search.Search(image(tiny.bytes_of("twin")), timeout=0.3) for _ in range(4)]
        for call in late:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: pipeline.forecast.under_way == 4)
        assert len(decoded) == 3
        gate.gate.set()
        assert all(a.hits for a in await asyncio.gather(first, *calls))
        assert gate.batches == [1, 1, 1, 1]
        assert pipeline.tally.cancelled + pipeline.tally.expired == 4


async def test_images_embeddings_and_ids_share_a_batch(serve: Any, gated: Any, tiny: Any, until: Any) -> None:
    gate, engine = gated
    async with serve(engine=engine) as running:
        pipeline = running.server.pipeline
        first = asyncio.ensure_future(running.search.Search(image(tiny.bytes_of("twin"))))
        await asyncio.to_thread(gate.entered.wait, 10)
        by_id = pb.SearchRequest(query=pb.Query(image_id="red-rings-1"))
        vectors = {name: pb.Vector(values=[1.0] * e.dim) for name, e in engine.embedders.items()}
        by_embedding = pb.SearchRequest(query=pb.Query(embedding=pb.EnsembleEmbedding(vectors=vectors)))
        requests = [by_id, by_embedding, image(tiny.bytes_of("red-rings-1")), image(tiny.bytes_of("blue-rings-1"))]
        calls = [asyncio.ensure_future(running.search.Search(request)) for request in requests]
        await until(lambda: pipeline.forecast.under_way == 5)
        assert pipeline.admission.used == 3.25
        await asyncio.sleep(0.1)
        gate.gate.set()
        answers = await asyncio.gather(first, *calls)
        assert answers[1].hits[0].image_id == "red-rings-1"
        assert gate.batches == [1, 2]
        assert (pipeline.tally.batches.counts[0], pipeline.tally.batches.counts[2]) == (1, 1)
        assert pipeline.tally.processed == 5


async def test_a_request_that_is_no_message_is_refused(serve: Any, failure: Any) -> None:
    async with serve() as running:
        raw = running.channel.unary_unary("/cbir.v1.SearchService/Search")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(b"\xff\xff\xff")
        taken = failure(caught.value)
        assert (taken.code, taken.reason) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "BAD_MESSAGE")
        stream = running.channel.stream_stream("/cbir.v1.SearchService/SearchStream")()
        await stream.write(item("1", image_id="twin").SerializeToString())
        await stream.write(b"\xff\xff\xff")
        assert pb.SearchStreamResponse.FromString(await stream.read()).response.hits
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert failure(caught.value).reason == "BAD_MESSAGE"


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
