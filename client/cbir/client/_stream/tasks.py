"""A search stream by tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import grpc

from cbir.client._errors import Cancelled, CbirClientError
from cbir.client._queries import Query
from cbir.client._requests import Filled
from cbir.client._search_result import SearchResult
from cbir.client._stream.dialogue import Dialogue
from cbir.v1 import search_pb2

__all__ = ["converse"]

K = TypeVar("K")


async def converse(
    queries: Iterable[tuple[K, Query | None]] | AsyncIterable[tuple[K, Query | None]],
    fill: Callable[[Query | None], Awaitable[Filled]],
    open_call: Callable[[AsyncIterator[search_pb2.SearchStreamRequest]], Any],
    dialogue: Dialogue[K],
    window: int,
) -> AsyncGenerator[tuple[K, SearchResult | CbirClientError], None]:
    """As :func:`cbir.client._stream.threads.converse`, but with tasks instead of threads."""
    events: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
    room = asyncio.Semaphore(window)
    outgoing: asyncio.Queue[search_pb2.SearchStreamRequest | None] = asyncio.Queue()
    call: Any = None
    tasks = [asyncio.create_task(_draw(queries, fill, dialogue, events, room))]
    try:
        while True:
            if dialogue.must_connect():
                outgoing = asyncio.Queue()
                call = open_call(_messages(outgoing))
                tasks.append(asyncio.create_task(_listen(call, dialogue, events)))
            for message in dialogue.send():
                outgoing.put_nowait(message)
            if dialogue.must_half_close():
                outgoing.put_nowait(None)
            while (answer := dialogue.take()) is not None:
                room.release()
                yield answer
            if dialogue.finished():
                return
            try:
                async with asyncio.timeout(dialogue.patience()):
                    happened = await events.get()
            except TimeoutError:
                dialogue.check()
            else:
                happened()
    finally:
        outgoing.put_nowait(None)
        if call is not None:
            call.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pairs(
    queries: Iterable[tuple[K, Query | None]] | AsyncIterable[tuple[K, Query | None]],
) -> AsyncIterator[tuple[K, Query | None]]:
    if isinstance(queries, AsyncIterable):
        async for pair in queries:
            yield pair
    else:
        for pair in queries:
            yield pair


async def _messages(
    outgoing: asyncio.Queue[search_pb2.SearchStreamRequest | None],
) -> AsyncIterator[search_pb2.SearchStreamRequest]:
    while (message := await outgoing.get()) is not None:
        yield message


async def _draw(
    queries: Iterable[tuple[K, Query | None]] | AsyncIterable[tuple[K, Query | None]],
    fill: Callable[[Query | None], Awaitable[Filled]],
    dialogue: Dialogue[K],
    events: asyncio.Queue[Callable[[], None]],
    room: asyncio.Semaphore,
) -> None:
    """Take queries from the iterable while the window has room, and report each of them."""
    try:
        pairs = _pairs(queries)
        while True:
            await room.acquire()
            try:
                key, query = await anext(pairs)
            except StopAsyncIteration:
                break
            try:
                event = partial(dialogue.query, key, await fill(query))
            except CbirClientError as error:
                event = partial(dialogue.refused, key, error)
            events.put_nowait(event)
    except Exception as error:  # noqa: BLE001 - raised again where the caller waits
        events.put_nowait(partial(dialogue.failed, error))
    else:
        events.put_nowait(dialogue.exhausted)


async def _listen(call: Any, dialogue: Dialogue[Any], events: asyncio.Queue[Callable[[], None]]) -> None:
    """Report the server's answers until the call ends."""
    try:
        async for response in call:
            events.put_nowait(partial(dialogue.answer, response))
    except grpc.RpcError as error:
        events.put_nowait(partial(dialogue.closed, error))
    except asyncio.CancelledError:
        # This is also how close() shows here; a caller that still waits for answers must learn of it.
        events.put_nowait(partial(dialogue.failed, Cancelled("the client was closed while queries were unanswered")))
        raise
    else:
        events.put_nowait(partial(dialogue.closed, None))
