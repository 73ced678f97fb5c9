"""The load generator that speaks HTTP/2 itself, against gRPC's server and against h2."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from grpc_status import rpc_status
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, PingAckReceived, RequestReceived, StreamReset
from h2.settings import SettingCodes

from cbir.core.errors import ConfigurationError
from cbir.server.bench.load.arrivals import constant
from cbir.server.bench.load.crowd import Crowd
from cbir.server.bench.load.frame_generator import FrameGenerator
from cbir.server.bench.load.generator import SEARCH, Window
from cbir.server.bench.load.http2 import Call, Connection
from cbir.server.bench.load.payloads import Payloads
from cbir.server.queue import OverloadedError
from cbir.server.transport import status

Answer = Callable[[bytes, grpc.aio.ServicerContext], Any]


@asynccontextmanager
async def answering(answer: Answer, **options: int) -> AsyncIterator[str]:
    """A server of ``Search`` alone; gives its address."""
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", -1), *((f"grpc.{name}", value) for name, value in options.items())]
    )
    handlers = {SEARCH.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SEARCH.split("/")[1], handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def test_every_request_gets_its_own_answer() -> None:
    async def twice(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return request * 2

    bodies = [bytes([number]) * size for number, size in enumerate((0, 1, 1000, 70_000, 3_000_000))]
    async with answering(twice) as address, FrameGenerator([address], channels=2) as generator:
        load = await generator.scheduled(Payloads("id", bodies), constant(100, 0.2))
    assert load.requests == load.answered == 20
    # Large ones wait for the server's windows, so that the order is another one.
    assert sorted(map(len, load.replies)) == sorted(4 * [0, 2, 2000, 140_000, 6_000_000])
    assert {reply[:1] * len(reply) == reply for reply in load.replies} == {True}
    assert set(load.outcomes.place.tolist()) == set(range(20))


async def test_a_refusal_comes_with_its_reason() -> None:
    async def refuse(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        refusal = rpc_status.to_status(status.to_status(OverloadedError("busy: try again", 0.25)))
        await context.abort(refusal.code, refusal.details, refusal.trailing_metadata)
        raise AssertionError

    async with answering(refuse) as address, FrameGenerator([address]) as generator:
        load = await generator.scheduled(Payloads("id", [b"x"]), constant(100, 0.1))
    assert load.outcomes.errors() == {"OVERLOADED": 10}
    assert all(failure.code == "RESOURCE_EXHAUSTED" for failure in load.outcomes.failures.values())
    assert all(failure.retry_info for failure in load.outcomes.failures.values())


async def test_a_call_is_given_up_at_its_deadline_and_the_server_hears_of_it() -> None:
    left = asyncio.Event()
    told: list[float | None] = []

    async def never(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        told.append(context.time_remaining())
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        raise AssertionError

    async with answering(never) as address, FrameGenerator([address], timeout=0.3) as generator:
        load = await generator.scheduled(Payloads("id", [b"x"]), constant(10, 0.1))
        await asyncio.wait_for(left.wait(), 10)
    assert load.outcomes.errors() == {"DEADLINE_EXCEEDED": 1}
    assert told[0] is not None
    assert 0.0 < told[0] <= 0.3


async def test_calls_beyond_what_the_server_allows_are_held_back() -> None:
    under_way, most = 0, 0

    async def slow(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return request

    async with answering(slow, max_concurrent_streams=3) as address, FrameGenerator([address]) as generator:
        load = await generator.closed(Payloads("id", [b"x"]), 10, Window(0.3, warm=0.05))
    assert most == 3
    # A stream may count for a moment longer at the server than here.
    assert set(load.outcomes.errors()) <= {"UNAVAILABLE"}
    assert load.answered > 20


async def test_a_server_that_goes_ends_every_call() -> None:
    async def gone(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    async with answering(gone) as address, FrameGenerator([address], timeout=30) as generator:
        asking = asyncio.create_task(generator.scheduled(Payloads("id", [b"x"]), constant(100, 0.05)))
        await asyncio.sleep(0.2)
    load = await asyncio.wait_for(asking, 10)
    assert sum(load.outcomes.errors().values()) == 5
    assert set(load.outcomes.errors()) <= {"UNAVAILABLE", "CANCELLED"}


async def test_nobody_at_the_address_is_told() -> None:
    with pytest.raises(ConfigurationError, match="does not answer"):
        async with FrameGenerator(["127.0.0.1:1"]):
            raise AssertionError
    with pytest.raises(ConfigurationError, match="does not answer"):
        await Crowd(["127.0.0.1:1"]).scheduled(Payloads("id", [b"x"]), constant(1, 1))


class Wire:
    """A connection whose other end is h2, in memory."""

    def __init__(self) -> None:
        self.ended: list[tuple[int, str, bytes]] = []
        self.sent = bytearray()
        self.connection = Connection(
            SEARCH, "nobody", lambda call, code, told: self.ended.append((call.place, code, told))
        )
        self.peer = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.peer.initiate_connection()
        self.events: list[Any] = []
        self.connection.connection_made(self)  # type: ignore[arg-type]
        self.exchange()

    def write(self, data: bytes) -> None:
        """As a transport."""
        self.sent += data

    def close(self) -> None:
        """As a transport."""

    def exchange(self, step: int = 2**20) -> None:
        """Carry over what either has to say, to the connection in pieces of some bytes."""
        while True:
            self.connection.flush()
            data, self.sent = bytes(self.sent), bytearray()
            self.events += self.peer.receive_data(data)
            answer = self.peer.data_to_send()
            if not data and not answer:
                return
            for start in range(0, len(answer), step):
                self.connection.data_received(answer[start : start + step])

    def of(self, kind: type) -> list[Any]:
        """The events of a kind."""
        return [event for event in self.events if isinstance(event, kind)]


async def test_what_is_sent_is_what_grpc_asks_for() -> None:
    wire = Wire()
    assert wire.connection.ready.done()
    for place in range(2):
        wire.connection.ask(Call(place, b"query", 0.0, 5.0))
    wire.exchange()
    for request, stream in zip(wire.of(RequestReceived), (1, 3), strict=True):
        fields = dict(request.headers)
        assert request.stream_id == stream
        assert (fields[":method"], fields[":path"], fields["te"]) == ("POST", SEARCH, "trailers")
        assert fields["content-type"] == "application/grpc"
        assert 4500 <= int(fields["grpc-timeout"].removesuffix("m")) <= 5000
    assert [event.data for event in wire.of(DataReceived)] == [b"\x00\x00\x00\x00\x05query"] * 2


@pytest.mark.parametrize("step", [1, 7, 2**20])
async def test_answers_may_come_in_any_pieces(step: int) -> None:
    wire = Wire()
    for place in range(3):
        wire.connection.ask(Call(place, b"", 0.0, 5.0))
    wire.exchange()
    for stream in (3, 1):
        wire.peer.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        wire.peer.send_data(stream, b"\x00\x00\x00\x00\x04an", pad_length=9)
        wire.peer.send_data(stream, b"sw")
        # So long that it takes a second frame.
        wire.peer.send_headers(stream, [("grpc-status", "0"), ("x", "y" * 20_000)], end_stream=True)
    wire.peer.send_headers(5, [(":status", "200"), ("grpc-status", "5"), ("grpc-message", "none")], end_stream=True)
    wire.peer.ping(b"12345678")
    wire.exchange(step)
    assert wire.ended == [(1, "OK", b"answ"), (0, "OK", b"answ"), (2, "NOT_FOUND", b"")]
    assert len(wire.of(PingAckReceived)) == 1


async def test_windows_hold_a_message_back() -> None:
    wire = Wire()
    # 65,535 bytes may be sent on the connection, 100 on each stream.
    wire.peer.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100})
    wire.exchange()
    wire.connection.ask(Call(0, bytes(195), 0.0, 5.0))
    wire.exchange()
    received = lambda: sum(len(event.data) for event in wire.of(DataReceived))  # noqa: E731
    assert received() == 100
    wire.peer.increment_flow_control_window(60, 1)
    wire.exchange()
    assert received() == 160
    wire.peer.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 140})
    wire.exchange()
    assert received() == 200
    assert wire.ended == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ErrorCodes.REFUSED_STREAM, "UNAVAILABLE"), (ErrorCodes.CANCEL, "CANCELLED"),
        (ErrorCodes.ENHANCE_YOUR_CALM, "RESOURCE_EXHAUSTED"), (ErrorCodes.PROTOCOL_ERROR, "INTERNAL"),
    ],
)  # fmt: skip
async def test_a_reset_stream_is_what_grpc_makes_of_it(error: ErrorCodes, code: str) -> None:
    wire = Wire()
    wire.connection.ask(Call(7, b"", 0.0, 5.0))
    wire.exchange()
    wire.peer.reset_stream(1, error)
    wire.exchange()
    assert wire.ended == [(7, code, b"")]


async def test_only_what_has_begun_is_cancelled_at_the_server(until: Any) -> None:
    wire = Wire()
    wire.peer.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
    wire.exchange()
    for place in range(3):
        wire.connection.ask(Call(place, b"", 0.0, 30.0 if place == 2 else 0.02))
    wire.exchange()
    assert len(wire.of(RequestReceived)) == 1
    await until(lambda: len(wire.ended) == 2)
    wire.exchange()
    assert wire.ended == [(0, "DEADLINE_EXCEEDED", b""), (1, "DEADLINE_EXCEEDED", b"")]
    assert [event.error_code for event in wire.of(StreamReset)] == [ErrorCodes.CANCEL]
    # The one that has time has its turn.
    assert [event.stream_id for event in wire.of(RequestReceived)] == [1, 3]


async def test_what_is_asked_of_a_dead_connection_has_failed() -> None:
    wire = Wire()
    wire.connection.ask(Call(0, b"", 0.0, 5.0))
    wire.connection.connection_lost(None)
    wire.connection.ask(Call(1, b"", 0.0, 5.0))
    assert wire.ended == [(0, "UNAVAILABLE", b""), (1, "UNAVAILABLE", b"")]


async def test_details_are_a_serialised_status() -> None:
    wire = Wire()
    wire.connection.ask(Call(0, b"", 0.0, 5.0))
    wire.exchange()
    told = status_pb2.Status(code=8, message="busy")
    refusal = rpc_status.to_status(told)
    encoded = b64encode(dict(refusal.trailing_metadata)["grpc-status-details-bin"]).rstrip(b"=").decode()
    wire.peer.send_headers(
        1, [(":status", "200"), ("grpc-status", "8"), ("grpc-status-details-bin", encoded)], end_stream=True
    )
    wire.exchange()
    assert wire.ended == [(0, "RESOURCE_EXHAUSTED", told.SerializeToString())]
