"""Many searches at once: in flight, in a stream, cancelled, and through a restart of the server."""

from __future__ import annotations

import asyncio
import resource
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from cbir.client import AsyncClient, Retry, SearchResult
from cbir.v1 import search_pb2


async def test_two_hundred_searches_are_in_flight_at_once(start_server: Any) -> None:
    server = start_server(workers=220)
    arrived, gate = threading.Semaphore(0), threading.Event()

    def hold(request: Any, context: Any) -> Any:
        arrived.release()
        assert gate.wait(60)
        answer = server.make_answer(request)
        answer.index_version = request.query.image_id
        return answer

    server.on_search = hold
    async with AsyncClient(server.target, timeout=60.0) as client:
        asked = [asyncio.ensure_future(client.search(image_id=str(number), limit=1)) for number in range(200)]

        def all_have_come() -> bool:
            return all(arrived.acquire(timeout=30) for _ in asked)

        assert await asyncio.to_thread(all_have_come)
        gate.set()
        answers = await asyncio.gather(*asked)
    assert [answer.index_version for answer in answers] == [str(number) for number in range(200)]


def resident() -> int:
    """Bytes of memory that this process holds, the server's threads included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell how much memory is held")
async def test_a_stream_of_five_thousand_images_takes_bounded_memory(server: Any) -> None:
    image, count, window = bytes(50_000), 5000, 16
    drawn = answered = ahead = 0

    def answer(item: Any, context: Any) -> Any:
        response = server.make_answer(search_pb2.SearchRequest(options=search_pb2.SearchOptions(limit=1)))
        return search_pb2.SearchStreamResponse(request_id=item.request_id, response=response)

    def stream(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        # The server of these tests remembers what it was asked; 250 MB of it would be in the way here.
        return (answer(item, context) for item in requests)

    server.on_stream = stream

    async def images() -> AsyncIterator[tuple[int, bytes]]:
        nonlocal drawn, ahead
        for number in range(count):
            drawn += 1
            ahead = max(ahead, drawn - answered)
            yield number, image + number.to_bytes(4, "little")

    seen: Counter[int] = Counter()
    settled = 0
    async with AsyncClient(server.target, timeout=60.0) as client:
        async for key, result in client.search_stream(images(), window=window, limit=1):
            assert isinstance(result, SearchResult)
            answered += 1
            seen[key] += 1
            if answered == 500:
                settled = resident()
    assert seen == Counter(range(count))
    # One more is drawn when there is room for it, before the answer that made the room is counted here.
    assert ahead <= window + 1
    # 225 MB went through since.
    assert resident() - settled < 60e6


async def test_cancelling_a_search_ends_its_call_at_the_server(server: Any) -> None:
    ended, begun = threading.Event(), threading.Event()

    def hold(request: Any, context: Any) -> Any:
        context.add_callback(ended.set)
        begun.set()
        ended.wait(30)
        return server.make_answer(request)

    server.on_search = hold
    async with AsyncClient(server.target, timeout=60.0) as client:
        asked = asyncio.ensure_future(client.search(image_id="x"))
        assert await asyncio.to_thread(begun.wait, 30)
        asked.cancel()
        assert await asyncio.to_thread(ended.wait, 30)


async def test_leaving_a_stream_ends_its_call_at_the_server(server: Any) -> None:
    ended = threading.Event()

    def stream(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        context.add_callback(ended.set)
        for request in requests:
            yield server.item(request, context)

    server.on_stream = stream
    async with AsyncClient(server.target) as client:
        async with aclosing(client.search_stream(((n, b"image") for n in range(1000)), window=4)) as answers:
            async for _ in answers:
                break
        assert await asyncio.to_thread(ended.wait, 30)


async def test_a_restart_in_the_middle_costs_no_answer_and_doubles_none(start_server: Any) -> None:
    first = start_server(workers=40)
    port = int(first.target.rpartition(":")[2])
    second = type(first)()
    count, window = 300, 32
    answered: Counter[int] = Counter()

    def restart() -> None:
        first.stop()
        time.sleep(0.2)
        start_server(second, port=port, workers=40)

    restarting: asyncio.Future[None] | None = None
    async with AsyncClient(first.target, timeout=60.0, retry=Retry(5, first_pause=0.2)) as client:

        async def one(number: int) -> None:
            result = await client.search(image_id=str(number), limit=1)
            assert len(result) == 1

        stream = client.search_stream(((number, b"image%d" % number) for number in range(count)), window=window)
        async for key, result in stream:
            assert isinstance(result, SearchResult), result
            answered[key] += 1
            if answered.total() == 100:
                restarting = asyncio.ensure_future(asyncio.to_thread(restart))
                unary = [asyncio.ensure_future(one(number)) for number in range(50)]
        assert restarting is not None
        await restarting
        await asyncio.gather(*unary)
    assert answered == Counter(range(count))
    # Both of them answered: the restart was in the middle.
    assert min(len(first.requests), len(second.requests)) > 0
