"""What fails, how it is called, and when it is tried again."""

from __future__ import annotations

import math
import pickle
import threading
import time
from typing import Any

import grpc
import pytest

import cbir.client
from cbir.client._client import Client
from cbir.client._errors import (
    Cancelled,
    CbirClientError,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    InvalidQuery,
    NotFound,
    Overloaded,
    PermissionDenied,
    ServerError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unsupported,
)

ONCE = {"timeout": 5.0, "attempts": 1}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", InvalidQuery),
        ("OUT_OF_RANGE", InvalidQuery),
        ("NOT_FOUND", NotFound),
        ("FAILED_PRECONDITION", FailedPrecondition),
        ("UNIMPLEMENTED", Unsupported),
        ("UNAVAILABLE", Unavailable),
        ("DEADLINE_EXCEEDED", DeadlineExceeded),
        ("CANCELLED", Cancelled),
        ("UNAUTHENTICATED", Unauthenticated),
        ("PERMISSION_DENIED", PermissionDenied),
        ("INTERNAL", ServerError),
        ("UNKNOWN", ServerError),
        ("DATA_LOSS", ServerError),
        ("ABORTED", ServerError),
        ("RESOURCE_EXHAUSTED", TooLarge),
    ],
)
def test_each_code_has_its_exception(server: Any, make_client: Any, code: str, kind: type[CbirClientError]) -> None:
    server.on_search = lambda request, context: server.abort(
        context, code, "this is wrong: do that", reason="SOME_REASON", field="options.limit", limit="7"
    )
    with make_client(server.target, **ONCE) as client, pytest.raises(CbirClientError) as caught:
        client.search(b"image")
    error = caught.value
    assert type(error) is kind
    assert str(error) == "this is wrong: do that"
    assert (error.reason, error.metadata) == ("SOME_REASON", {"limit": "7"})
    assert error.violations == (FieldViolation("options.limit", "this is wrong: do that"),)
    assert error.retry_after is None
    assert isinstance(error.__cause__, grpc.RpcError)


def test_errors_without_details_still_get_a_way_out(server: Any, make_client: Any) -> None:
    server.on_search = lambda request, context: context.abort(grpc.StatusCode.INTERNAL, "segfault")
    with make_client(server.target, **ONCE) as client:
        with pytest.raises(ServerError, match=r"failed with INTERNAL: look at its log \(segfault\)"):
            client.search(b"image")
        server.on_search = lambda request, context: 1 / 0
        with pytest.raises(ServerError, match="failed with UNKNOWN"):
            client.search(b"image")


def test_damaged_details_do_not_hide_the_error(server: Any, make_client: Any) -> None:
    def abort(request: Any, context: Any) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "no such image")

    server.on_search = abort
    with make_client(server.target, **ONCE) as client, pytest.raises(NotFound, match="no such image"):
        client.search(b"image")


def test_exceptions_survive_pickling() -> None:
    error = Overloaded("busy", reason="QUEUE_FULL", metadata={"queue": "64"}, retry_after=1.5)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.__dict__) == (Overloaded, "busy", error.__dict__)
    assert type(copy).__module__ == cbir.client.__name__


def test_no_server_is_said_in_a_sentence(make_client: Any, no_server: str) -> None:
    with make_client(no_server, timeout=5.0) as client:
        began = time.monotonic()
        with pytest.raises(Unavailable, match=f"no server answers at {no_server}: start one with 'cbir serve INDEX'"):
            client.index_info()
        assert time.monotonic() - began < 4.0


@pytest.mark.parametrize("size", [10, 2_000_000])
def test_calls_no_server_took_are_repeated(server: Any, make_client: Any, size: int) -> None:
    # The large one is more than gRPC keeps for repeating unless it is told to.
    def refuse_twice(request: Any, context: Any) -> Any:
        if len(server.requests) < 3:
            server.abort(context, "UNAVAILABLE", "no index is ready", reason="NOT_READY")
        return server.make_answer(request)

    server.on_search = refuse_twice
    with make_client(server.target, timeout=5.0) as client:
        assert client.search(bytes(size)).index_version == "v1"
    assert len(server.requests) == 3
    assert server.requests[2].query.image == bytes(size)


def test_repeating_ends_and_can_be_turned_off(server: Any, make_client: Any) -> None:
    server.on_search = lambda request, context: server.abort(
        context, "UNAVAILABLE", "no index is ready", reason="NOT_READY"
    )
    for attempts in (1, 3):
        server.requests.clear()
        with (
            make_client(server.target, timeout=5.0, attempts=attempts) as client,
            pytest.raises(Unavailable, match=r"^no index is ready$"),
        ):
            client.search(b"image")
        assert len(server.requests) == attempts


def test_overloaded_server_is_tried_again_when_it_says(server: Any, any_client: Any) -> None:
    def busy_once(request: Any, context: Any) -> Any:
        if len(server.requests) == 1:
            server.abort(context, "RESOURCE_EXHAUSTED", "the queue is full", reason="QUEUE_FULL", retry=0.3)
        return server.make_answer(request)

    server.on_search = busy_once
    began = time.monotonic()
    assert any_client.search(b"image").index_version == "v1"
    assert 0.3 <= time.monotonic() - began < 1.5
    assert len(server.requests) == 2


def test_overload_that_lasts_is_reported(server: Any, make_client: Any) -> None:
    server.on_search = lambda request, context: server.abort(
        context, "RESOURCE_EXHAUSTED", "the queue is full", reason="QUEUE_FULL", retry=0.02
    )
    for attempts in (1, 4):
        server.requests.clear()
        with make_client(server.target, timeout=5.0, attempts=attempts) as client, pytest.raises(Overloaded) as caught:
            client.search(b"image")
        assert caught.value.retry_after == pytest.approx(0.02)
        assert len(server.requests) == attempts


def test_no_waiting_past_the_deadline(server: Any, any_client: Any) -> None:
    server.on_search = lambda request, context: server.abort(
        context, "RESOURCE_EXHAUSTED", "the queue is full", reason="QUEUE_FULL", retry=60.0
    )
    began = time.monotonic()
    with pytest.raises(Overloaded) as caught:
        any_client.search(b"image")
    assert caught.value.retry_after == 60.0
    assert time.monotonic() - began < 1.0
    assert len(server.requests) == 1


def test_too_large_is_not_tried_again(server: Any, any_client: Any) -> None:
    server.on_search = lambda request, context: server.abort(
        context, "RESOURCE_EXHAUSTED", "the image is too large", reason="IMAGE_TOO_LARGE"
    )
    with pytest.raises(TooLarge, match="the image is too large"):
        any_client.search(b"image")
    assert len(server.requests) == 1


def test_more_than_the_server_takes(server: Any, any_client: Any) -> None:
    with pytest.raises(TooLarge, match="send a smaller image"):
        any_client.search(bytes(9 * 2**20))
    assert server.requests == []


def test_more_than_this_client_sends(server: Any, make_client: Any, tmp_path: Any) -> None:
    file = tmp_path / "large.png"
    file.write_bytes(bytes(100_001))
    with make_client(server.target, max_message_bytes=100_000) as client:
        for query in (bytes(100_001), file):
            with pytest.raises(TooLarge, match="100,001 bytes, more than the 100,000") as caught:
                client.search(query)
            assert caught.value.reason == "IMAGE_TOO_LARGE"
        # Fits as an image, but not with what is around it.
        with pytest.raises(TooLarge, match="send a smaller image"):
            client.search(bytes(100_000))
    assert server.requests == []


def test_more_than_this_client_receives(server: Any, make_client: Any) -> None:
    with (
        make_client(server.target, max_message_bytes=300, timeout=5.0) as client,
        pytest.raises(TooLarge, match="larger than max"),
    ):
        client.search(b"image")


def test_deadline_ends_a_call(server: Any, any_client: Any) -> None:
    def dawdle(request: Any, context: Any) -> Any:
        released.wait(5.0)
        return server.make_answer(request)

    released = threading.Event()
    server.on_search = dawdle
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="raise the timeout"):
        any_client.search(b"image", timeout=0.2)
    assert 0.15 < time.monotonic() - began < 2.0
    released.set()
    assert any_client.search(b"image").index_version == "v1"


def test_the_server_is_told_of_the_deadline(server: Any, make_client: Any) -> None:
    told: list[float | None] = []

    def note(request: Any, context: Any) -> Any:
        told.append(context.time_remaining())
        return server.make_answer(request)

    server.on_search = note
    with make_client(server.target) as client:
        client.search(b"image")
        client.search(b"image", timeout=100.0)
        client.search(b"image", timeout=math.inf)
    assert told[0] == pytest.approx(10.0, abs=1.0)
    assert told[1] == pytest.approx(100.0, abs=1.0)
    assert told[2] is None or told[2] > 1e6


def test_a_deadline_spans_the_repeats(server: Any, any_client: Any) -> None:
    server.on_search = lambda request, context: server.abort(
        context, "RESOURCE_EXHAUSTED", "the queue is full", reason="QUEUE_FULL", retry=0.5
    )
    with pytest.raises(Overloaded):
        any_client.search(b"image", timeout=0.9)
    assert len(server.requests) == 2


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_a_timeout_that_is_none_is_refused(any_client: Any, timeout: float) -> None:
    with pytest.raises(ValueError, match="positive number of seconds"):
        any_client.search(b"image", timeout=timeout)


def test_nothing_is_pinged_faster_than_servers_like() -> None:
    with Client("localhost:1") as client:
        options = dict(client._settings.options())
    assert options["grpc.keepalive_time_ms"] >= 300_000  # type: ignore[operator]
    assert options["grpc.max_send_message_length"] == options["grpc.max_receive_message_length"] == 64 * 2**20
