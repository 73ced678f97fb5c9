"""Many queries over one call."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from cbir.client._async_client import AsyncClient
from cbir.client._client import Client
from cbir.client._errors import Cancelled, DeadlineExceeded, FailedPrecondition, InvalidQuery, Overloaded, Unavailable
from cbir.client._queries import Embedding, ImageId
from cbir.client._search_result import SearchResult
from cbir.v1 import search_pb2


def numbers(server: Any) -> list[str]:
    """The ids of gallery images that were asked about, in the order they arrived."""
    return [request.request.query.image_id for request in server.requests]


def test_every_query_is_answered_under_its_own_key(server: Any, any_client: Any) -> None:
    answers = list(any_client.search_stream(((n, ImageId(str(n))) for n in range(100)), limit=3, window=8))
    assert sorted(key for key, _ in answers) == list(range(100))
    assert all(isinstance(result, SearchResult) and len(result.hits) == 3 for _, result in answers)
    assert server.streams == 1
    assert sorted(map(int, numbers(server))) == list(range(100))


def test_keys_may_be_anything_and_repeat(any_client: Any) -> None:
    key = object()
    assert [k for k, _ in any_client.search_stream([(key, b"a"), (None, b"b"), (key, b"c")])] == [key, None, key]


def test_answers_come_as_they_are_ready(server: Any, any_client: Any) -> None:
    def backwards(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for request in reversed([next(requests) for _ in range(5)]):
            yield server.on_item(request, context)

    server.on_stream = backwards
    stream = any_client.search_stream((n, ImageId(str(n))) for n in range(5))
    assert [key for key, _ in stream] == [4, 3, 2, 1, 0]


def test_bad_queries_are_answered_in_band(server: Any, any_client: Any, tmp_path: Any) -> None:
    queries = [("good", b"a"), ("bad", b"bad bytes"), ("absent", tmp_path / "nowhere.png"), ("last", b"b")]
    answers = dict(any_client.search_stream(queries))
    assert isinstance(answers["good"], SearchResult)
    assert isinstance(answers["last"], SearchResult)
    assert isinstance(answers["bad"], InvalidQuery)
    assert (answers["bad"].reason, str(answers["bad"])) == ("IMAGE_FORMAT", "the bytes are no image")
    assert isinstance(answers["absent"], InvalidQuery)
    assert answers["absent"].reason == "FILE_UNREADABLE"


def test_no_queries_no_call(server: Any, any_client: Any) -> None:
    assert list(any_client.search_stream([])) == []
    assert server.streams == 0


def test_options_are_checked_before_anything_is_drawn(any_client: Any) -> None:
    with pytest.raises(InvalidQuery, match="limit is 0"):
        any_client.search_stream(iter([]), limit=0).__next__()
    with pytest.raises(ValueError, match="window is 0"):
        any_client.search_stream(iter([]), window=0).__next__()


def test_no_more_than_the_window_is_drawn_ahead(server: Any, any_client: Any) -> None:
    drawn = 0

    def draw() -> Iterator[tuple[int, ImageId]]:
        nonlocal drawn
        for n in range(30):
            drawn += 1
            yield n, ImageId(str(n))

    ahead = []
    for taken, _ in enumerate(any_client.search_stream(draw(), window=4), 1):
        time.sleep(0.01)
        ahead.append(drawn - taken)
    assert max(ahead) <= 4
    assert drawn == 30


def test_an_iterable_that_fails_fails_the_stream(server: Any, any_client: Any) -> None:
    def draw() -> Iterator[tuple[int, ImageId]]:
        yield 0, ImageId("0")
        raise LookupError("the camera is gone")

    with pytest.raises(LookupError, match="the camera is gone"):
        list(any_client.search_stream(draw()))
    with pytest.raises(TypeError, match="cannot be a float"):
        list(any_client.search_stream([(0, 1.5)]))


def test_a_stream_that_is_left_is_hung_up(server: Any, any_client: Any) -> None:
    ended = threading.Event()

    def serve(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        context.add_callback(ended.set)
        yield from server.stream(requests, context)

    def endless() -> Iterator[tuple[int, ImageId]]:
        n = 0
        while True:
            yield n, ImageId(str(n))
            n += 1

    server.on_stream = serve
    stream = any_client.search_stream(endless(), window=4)
    next(stream)
    assert not ended.is_set()
    stream.close()
    assert ended.wait(3.0)


def test_a_broken_connection_is_taken_up_again(server: Any, any_client: Any) -> None:
    def break_twice(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for place, answer in enumerate(server.stream(requests, context)):
            if place == 3 and server.streams < 3:
                server.abort(context, "UNAVAILABLE", "going away", reason="SHUTTING_DOWN")
            yield answer

    server.on_stream = break_twice
    answers = list(any_client.search_stream(((n, ImageId(str(n))) for n in range(20)), window=5))
    assert sorted(key for key, _ in answers) == list(range(20))
    assert server.streams == 3
    # What was answered before the break is not asked again.
    assert numbers(server).count("0") == 1


def test_a_stream_the_server_ends_early_is_taken_up_again(server: Any, any_client: Any) -> None:
    def end_early(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        stream = server.stream(requests, context)
        yield next(stream)
        if server.streams > 1:
            yield from stream

    server.on_stream = end_early
    answers = list(any_client.search_stream((n, ImageId(str(n))) for n in range(6)))
    assert sorted(key for key, _ in answers) == list(range(6))
    assert server.streams == 2


def test_a_server_that_keeps_breaking_is_given_up(server: Any, make_client: Any) -> None:
    server.on_stream = lambda requests, context: server.abort(context, "UNAVAILABLE", "no index", reason="NOT_READY")
    for attempts in (1, 3):
        server.streams = 0
        with (
            make_client(server.target, attempts=attempts, timeout=5.0) as client,
            # grpc.aio may lose the server's words when it was just sending.
            pytest.raises(Unavailable, match=r"no index|broke while a query was being sent"),
        ):
            list(client.search_stream([(0, b"image")]))
        assert server.streams == attempts


def test_no_server_for_a_stream(make_client: Any, no_server: str) -> None:
    with make_client(no_server, attempts=2) as client, pytest.raises(Unavailable, match="no server answers"):
        list(client.search_stream([(0, b"image")]))


def test_other_failures_of_the_call_are_not_repeated(server: Any, any_client: Any) -> None:
    server.on_stream = lambda requests, context: server.abort(context, "FAILED_PRECONDITION", "no", reason="NO_INDEX")
    with pytest.raises(FailedPrecondition, match="no"):
        list(any_client.search_stream([(0, b"image")]))
    # Where grpc.aio lost the server's words it had to ask again to learn them.
    assert server.streams == 1 if isinstance(any_client, Client) else server.streams <= 4


def busy(server: Any, times: int, retry: float) -> Any:
    """Refuse each query so often."""

    def item(request: Any, context: Any) -> Any:
        name = request.request.query.image_id
        if name and numbers(server).count(name) <= times:
            error = server.make_status("RESOURCE_EXHAUSTED", "the queue is full", reason="QUEUE_FULL", retry=retry)
            return search_pb2.SearchStreamResponse(request_id=request.request_id, error=error)
        return server.item(request, context)

    return item


def test_overload_in_band_is_waited_out(server: Any, any_client: Any) -> None:
    server.on_item = busy(server, times=2, retry=0.1)
    began = time.monotonic()
    answers = dict(any_client.search_stream((n, ImageId(str(n))) for n in range(4)))
    assert all(isinstance(result, SearchResult) for result in answers.values())
    assert time.monotonic() - began >= 0.2
    assert (len(server.requests), server.streams) == (12, 1)


def test_overload_in_band_that_lasts_is_reported(server: Any, any_client: Any) -> None:
    server.on_item = busy(server, times=99, retry=0.01)
    ((_, error),) = any_client.search_stream([(0, ImageId("0"))])
    assert isinstance(error, Overloaded)
    assert error.retry_after == pytest.approx(0.01)
    assert len(server.requests) == 4


def test_a_query_told_to_wait_waits_through_a_break_too(server: Any, any_client: Any) -> None:
    def refuse_and_break(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        stream = server.stream(requests, context)
        yield next(stream)
        if server.streams == 1:
            next(requests)
            server.abort(context, "UNAVAILABLE", "going away", reason="SHUTTING_DOWN")
        yield from stream

    server.on_item, server.on_stream = busy(server, times=1, retry=0.5), refuse_and_break
    queries = [("patient", ImageId("0")), ("other", Embedding({"vit": [1.0]}))]
    began = time.monotonic()
    answers = dict(any_client.search_stream(queries))
    assert time.monotonic() - began >= 0.5
    assert all(isinstance(result, SearchResult) for result in answers.values())
    assert (numbers(server).count("0"), server.streams) == (2, 2)


def test_a_silent_server_is_not_waited_for(server: Any, any_client: Any) -> None:
    def fall_silent(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        yield server.on_item(next(requests), context)
        silence.wait(5.0)

    silence = threading.Event()
    server.on_stream = fall_silent
    stream = any_client.search_stream([(0, b"a"), (1, b"b")], timeout=0.3)
    assert next(stream)[0] == 0
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"no answer for 0\.3 s while 1 queries waited"):
        next(stream)
    assert 0.2 < time.monotonic() - began < 1.5
    silence.set()


def test_slow_queries_and_slow_readers_are_not_silence(any_client: Any) -> None:
    def draw() -> Iterator[tuple[int, bytes]]:
        for n in range(2):
            time.sleep(0.6)
            yield n, b"image"

    keys = []
    for key, _ in any_client.search_stream(draw(), timeout=0.5):
        time.sleep(0.6)
        keys.append(key)
    assert keys == [0, 1]


def test_an_answer_is_there_before_the_next_query_is(server: Any, client: Client) -> None:
    # A caller may wait for an answer before it thinks of the next query: drawing must not hold answers up.
    answered = threading.Event()

    def draw() -> Iterator[tuple[int, bytes]]:
        yield 0, b"image"
        assert answered.wait(5.0)
        yield 1, b"image"

    keys = []
    for key, _ in client.search_stream(draw()):
        keys.append(key)
        answered.set()
    assert keys == [0, 1]


async def test_asynchronous_iterables(server: Any) -> None:
    async def draw() -> AsyncIterator[tuple[int, bytes]]:
        for n in range(3):
            yield n, b"image"

    async with AsyncClient(server.target) as client:
        assert [key async for key, _ in client.search_stream(draw())] == [0, 1, 2]


def test_closing_the_client_ends_its_streams(server: Any, make_client: Any) -> None:
    hold = threading.Event()

    def hang(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        yield server.on_item(next(requests), context)
        hold.wait(5.0)

    server.on_stream = hang
    with make_client(server.target, timeout=5.0) as client:
        stream = client.search_stream([(0, b"a"), (1, b"b")])
        next(stream)
        client.close()
        with pytest.raises(Cancelled):
            next(stream)
    hold.set()


def test_threads_may_share_a_client(server: Any, client: Client) -> None:
    counts: list[int] = []

    def work() -> None:
        counts.append(len(list(client.search_stream((n, b"image") for n in range(20)))))
        counts.append(len(client.search(b"image").hits))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == [10] * 4 + [20] * 4
