"""Calls that a flooded server's transport drops, reported as cancelled, and those that were cancelled here."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from cbir.client import AsyncClient, Cancelled, Client, ImageId, Overloaded, Retry


def drop(context: Any) -> None:
    # As gRPC's core does: the bare code.
    context.abort(grpc.StatusCode.CANCELLED, "")


def dropping(server: Any, times: int) -> Callable[[Any, Any], Any]:
    def search(request: Any, context: Any) -> Any:
        if len(server.requests) <= times:
            drop(context)
        return server.make_answer(request)

    return search


def test_a_dropped_search_is_asked_again(server: Any, any_client: Any) -> None:
    server.on_search = dropping(server, 2)
    assert any_client.search(b"image").index_version == "v1"
    assert len(server.requests) == 3


def test_drops_that_last_are_told_as_overload(server: Any, make_client: Any) -> None:
    server.on_search = dropping(server, 99)
    for attempts in (1, 3):
        server.requests.clear()
        with (
            make_client(server.target, timeout=5.0, retry=Retry(attempts, 0.01)) as client,
            pytest.raises(Overloaded, match=f"{server.target} dropped the call") as caught,
        ):
            client.search(b"image")
        assert caught.value.retry_after is None
        assert len(server.requests) == attempts


def test_the_deadline_spans_the_repeats(server: Any, make_client: Any) -> None:
    server.on_search = dropping(server, 99)
    began = time.monotonic()
    with (
        make_client(server.target, retry=Retry(5, 30.0, 30.0)) as client,
        pytest.raises(Exception, match=r"dropped|in time"),
    ):
        client.search(b"image", timeout=0.5)
    assert time.monotonic() - began < 15.0
    assert len(server.requests) == 1


def test_a_reload_that_was_dropped_is_not_repeated(server: Any, any_client: Any) -> None:
    asked: list[Any] = []

    def reload(request: Any, context: Any) -> None:
        asked.append(request)
        drop(context)

    server.on_reload = reload
    with pytest.raises(Overloaded):
        any_client.reload("v2")
    assert len(asked) == 1


def test_a_dropped_stream_is_taken_up_again(server: Any, any_client: Any) -> None:
    def drop_twice(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for place, answer in enumerate(server.stream(requests, context)):
            if place == 3 and server.streams < 3:
                drop(context)
            yield answer

    server.on_stream = drop_twice
    answers = list(any_client.search_stream(((n, ImageId(str(n))) for n in range(20)), window=5))
    assert sorted(key for key, _ in answers) == list(range(20))
    assert server.streams == 3


def test_a_stream_that_is_always_dropped_is_given_up(server: Any, make_client: Any) -> None:
    def read_and_drop(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        next(requests)
        drop(context)
        yield

    server.on_stream = read_and_drop
    for attempts in (1, 3):
        server.streams = 0
        with (
            make_client(server.target, timeout=5.0, retry=Retry(attempts, 0.01)) as client,
            pytest.raises(Overloaded, match="dropped the call"),
        ):
            list(client.search_stream([(0, b"image")]))
        assert server.streams == attempts


class Held:
    """A search that is not answered before the test ends."""

    def __init__(self, server: Any) -> None:
        self.begun, self.ended, self._server = threading.Event(), threading.Event(), server

    def __call__(self, request: Any, context: Any) -> Any:
        context.add_callback(self.ended.set)
        self.begun.set()
        self.ended.wait(30)
        return self._server.make_answer(request)


def test_closing_the_client_cancels_and_repeats_nothing(server: Any) -> None:
    server.on_search = held = Held(server)
    client, raised = Client(server.target, timeout=30.0), []

    def ask() -> None:
        try:
            client.search(b"image")
        except Exception as error:
            raised.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert held.begun.wait(30)
    client.close()
    asking.join(30)
    assert [type(error) for error in raised] == [Cancelled]
    assert held.ended.wait(30)
    assert len(server.requests) == 1


async def test_a_cancelled_task_stays_cancelled(server: Any) -> None:
    server.on_search = held = Held(server)
    async with AsyncClient(server.target, timeout=30.0) as client:
        asking = asyncio.ensure_future(client.search(b"image"))
        assert await asyncio.to_thread(held.begun.wait, 30)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await asyncio.to_thread(held.ended.wait, 30)
    assert len(server.requests) == 1
