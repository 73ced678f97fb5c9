"""Requests that never come whole: they are cut off in time, hold a bounded amount of memory, and disturb nobody."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from half_sent import RawConnection

from cbir.core.errors import ImageError, QueryError
from cbir.server.limits import Limits
from cbir.server.queue import Lane, OverloadedError
from cbir.server.transport.intake import Intake, received
from cbir.server.transport.wasted_bytes import WastedBytes
from cbir.v1 import search_pb2 as pb
from cbir.v1 import search_pb2_grpc

#: Statuses by number.
DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED = "4", "8"


def image(data: bytes) -> pb.SearchRequest:
    return pb.SearchRequest(query=pb.Query(image=data))


async def test_a_request_whose_last_byte_is_withheld_ends_in_time(serve: Any, tiny: Any, failure: Any) -> None:
    async with serve(read_seconds=1.0) as running:
        raw = await asyncio.to_thread(RawConnection, running.server.port)
        streams = [raw.call("Search") for _ in range(3)]
        await asyncio.to_thread(raw.send, dict.fromkeys(streams, 300_000))
        silent = raw.call("Search")
        # Honest callers on the same server are served meanwhile, slow ones too.
        for _ in range(3):
            assert (await running.search.Search(image(tiny.bytes_of("twin")))).hits
        await asyncio.to_thread(raw.receive, 2.5)
        assert raw.statuses == dict.fromkeys([*streams, silent], DEADLINE_EXCEEDED)
        assert running.server.pipeline.forecast.under_way == 0
        raw.close()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.channel.stream_unary("/cbir.v1.SearchService/Search")(iter(()))
        assert failure(caught.value).reason == "BAD_MESSAGE"


async def test_a_stream_whose_next_query_does_not_come_is_ended(serve: Any, tiny: Any, failure: Any) -> None:
    async with serve(stream_idle_seconds=1.0) as running:
        stream = running.search.SearchStream()
        await stream.write(pb.SearchStreamRequest(request_id="1", request=image(tiny.bytes_of("twin"))))
        assert (await stream.read()).response.hits
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        taken = failure(caught.value)
        assert (taken.code, taken.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED.value[0], "REQUEST_TOO_SLOW")


@pytest.mark.parametrize("method", ["Search", "SearchStream"])
async def test_what_half_sent_requests_hold_is_bounded(serve: Any, tiny: Any, method: str) -> None:
    """Two connections; the one that sends most is cut off, the one that sends little is not."""
    async with serve(intake_bytes=10 * 2**20, max_image_bytes=2 * 2**20) as running:
        hostile = await asyncio.to_thread(RawConnection, running.server.port)
        modest = await asyncio.to_thread(RawConnection, running.server.port)
        small = modest.call(method)
        await asyncio.to_thread(modest.send, {small: 100_000})
        streams = [hostile.call(method) for _ in range(10)]
        sending = asyncio.create_task(asyncio.to_thread(hostile.send, dict.fromkeys(streams, 2 * 2**20)))
        served = 0
        while not sending.done():
            assert (await running.search.Search(image(tiny.bytes_of("twin")))).hits
            served += 1
        await asyncio.to_thread(hostile.receive, 1.5)
        if received() is not None:
            assert hostile.statuses == dict.fromkeys(streams, RESOURCE_EXHAUSTED)
            await asyncio.to_thread(modest.receive, 0.05)
            assert modest.statuses == {}
        assert served
        hostile.close()
        modest.close()


async def test_where_the_system_counts_no_bytes_slow_requests_take_turns() -> None:
    """Each counts as the largest that there may be; a lane that has many of them leaves room for others."""
    limits = Limits(intake_bytes=2**20, max_image_bytes=2**10, read_seconds=5.0)
    assert limits.max_message_bytes > limits.intake_bytes
    intake = Intake(limits, lambda: None)

    class Context:
        def peer(self) -> str:
            return "unix:"

        async def read(self) -> bytes:
            await asyncio.sleep(0.8)
            return b"whole"

    async def read(lane: str) -> object:
        try:
            return await intake.read_one(Context(), Lane(lane))  # type: ignore[arg-type]
        except Exception as error:
            return type(error).__name__

    outcomes = await asyncio.gather(*(read("one") for _ in range(5)))
    assert sorted(map(str, outcomes)) == ["OverloadedError"] * 3 + ["b'whole'"] * 2
    assert intake.cut == {"OVERLOADED": 3}
    assert await read("one") == b"whole"


async def test_bytes_are_counted_for_each_connection() -> None:
    counted = received()
    if counted is None:
        pytest.skip("this system does not tell")
    took = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(70_000)
        took.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        port = writer.get_extra_info("sockname")[1]
        writer.write(bytes(70_000))
        await took.wait()
        counted = received()
        assert counted is not None
        assert counted[f"ipv4:127.0.0.1:{port}"] == 70_000
        writer.close()
        await writer.wait_closed()


def test_a_connection_may_waste_so_many_bytes_a_second() -> None:
    now = [100.0]
    wasted = WastedBytes(rate=1000, clock=lambda: now[0])
    assert wasted.wait("a") == 0
    # Two seconds' worth is free, and what is more is waited for.
    wasted.refused("a", 2000, ImageError("bad", reason="IMAGE_CORRUPT"))
    assert wasted.wait("a") == 0
    wasted.left("a", 1500)
    assert wasted.wait("a") == pytest.approx(1.5)
    assert wasted.wait("b") == 0
    now[0] += 1.0
    assert wasted.wait("a") == pytest.approx(0.5)
    # What is no fault of the request counts for nothing, and nobody waits for ever.
    wasted.refused("a", 10**6, OverloadedError("busy", 1.0))
    assert wasted.wait("a") == pytest.approx(0.5)
    wasted.refused("a", 10**6, QueryError("bad", reason="BAD_MESSAGE"))
    assert wasted.wait("a") == 5.0
    now[0] += 10**4
    assert wasted.wait("a") == 0


@pytest.mark.parametrize("method", ["Search", "SearchStream"])
async def test_who_sends_large_images_for_nothing_is_read_later_and_others_at_once(
    serve: Any, tiny: Any, method: str
) -> None:
    bad = image(b"\xff\xd8" + bytes(400_000))
    async with (
        serve(wasted_bytes=100_000) as running,
        grpc.aio.insecure_channel(running.server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        stub = search_pb2_grpc.SearchServiceStub(channel)
        if method == "Search":
            for _ in range(2):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Search(bad)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            # Eight seconds' worth: the next one is not read in this time.
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Search(bad, timeout=0.5)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        else:
            stream = stub.SearchStream()
            for number in ("0", "1"):
                await stream.write(pb.SearchStreamRequest(request_id=number, request=bad))
                assert (await stream.read()).request_id == number
            await stream.write(pb.SearchStreamRequest(request_id="2", request=bad))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.read(), 0.5)
        assert (await running.search.Search(image(tiny.bytes_of("twin")))).hits
