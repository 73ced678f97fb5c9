"""Calls that are not accepted: they cost Python nothing, and those that are accepted are answered as ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

import grpc
import pytest

from cbir.core.errors import CbirError
from cbir.server.queue import OverloadedError
from cbir.server.transport import acceptance as module
from cbir.server.transport.acceptance import Acceptance

REFUSAL = OverloadedError("the server is busy", 0.5)
METHOD, OTHER = "/test.Test/Ask", "/test.Test/Other"


@pytest.fixture
def _busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop looks busy all the time, and a call as if it took an hour."""
    seconds = count(0, 3600.0)
    monkeypatch.setattr(module, "thread_time", lambda: next(seconds))
    monkeypatch.setattr(module, "_WINDOW", 0.0)
    monkeypatch.setattr(module, "_LONGEST", 60.0)


@pytest.fixture
def _idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "thread_time", lambda: 1.0)
    monkeypatch.setattr(module, "_WINDOW", 0.0)
    monkeypatch.setattr(module, "_LONGEST", 60.0)


@dataclass
class Ask:
    """The ways to call a server."""

    one: grpc.aio.UnaryUnaryMultiCallable
    other: grpc.aio.UnaryUnaryMultiCallable

    def __call__(self, request: bytes, timeout: float | None = None) -> grpc.aio.UnaryUnaryCall:
        return self.one(request, timeout=timeout)


@asynccontextmanager
async def served(acceptance: Acceptance) -> AsyncIterator[tuple[Ask, list[bytes]]]:
    """A server that holds two calls back unseen, a way to call it, and what it has seen."""
    seen: list[bytes] = []

    async def ask(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        seen.append(request)
        return request

    async def other(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return b"the other"

    options = [("grpc.server.max_pending_requests", 1), ("grpc.server.max_pending_requests_hard_limit", 2)]
    server = grpc.aio.server(options=options)
    handlers = {"Ask": grpc.unary_unary_rpc_method_handler(ask), "Other": grpc.unary_unary_rpc_method_handler(other)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    server.add_registered_method_handlers("test.Test", handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await acceptance.start(server)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Ask(channel.unary_unary(METHOD), channel.unary_unary(OTHER)), seen
    finally:
        await acceptance.release()
        await server.stop(0)


async def check_that_all_are_answered_after(error: Exception | None) -> None:
    acceptance = Acceptance()
    async with served(acceptance) as (ask, seen):
        for _ in range(5):
            acceptance.ended(error)
            assert await ask(b"next", timeout=20) == b"next"
    assert len(seen) == 5


async def outcome(call: grpc.aio.UnaryUnaryCall) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


@pytest.mark.usefixtures("_busy")
async def test_a_flood_is_turned_away_unseen_after_a_refusal() -> None:
    acceptance = Acceptance()
    async with served(acceptance) as (ask, seen):
        assert await ask(b"before") == b"before"
        acceptance.ended(REFUSAL)
        outcomes = await asyncio.gather(*(outcome(ask(b"flood", timeout=1)) for _ in range(20)))
        assert seen == [b"before"]
    # One is taken and not looked at, and two wait, until their time is over; the others are told at once.
    assert outcomes.count("DEADLINE_EXCEEDED") <= 3
    assert outcomes.count("CANCELLED") >= 17


@pytest.mark.usefixtures("_busy")
async def test_a_flood_of_one_method_does_not_fill_the_list_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 0.3)
    acceptance = Acceptance()
    async with served(acceptance) as (ask, _):
        acceptance.ended(REFUSAL)
        flood = asyncio.gather(*(outcome(ask(b"flood", timeout=5)) for _ in range(20)))
        others = await asyncio.gather(*(outcome(ask.other(b"", timeout=5)) for _ in range(2)))
        assert others == ["OK", "OK"]
        assert (await flood).count("CANCELLED") >= 10


@pytest.mark.usefixtures("_busy")
@pytest.mark.parametrize(
    "error", [None, CbirError("the query is to blame", reason="BAD"), ValueError("so is the server")]
)
async def test_what_is_no_refusal_holds_nobody_up(error: Exception | None) -> None:
    await check_that_all_are_answered_after(error)


@pytest.mark.usefixtures("_idle")
async def test_an_idle_loop_has_time_for_refusals() -> None:
    await check_that_all_are_answered_after(REFUSAL)


@pytest.mark.usefixtures("_busy")
async def test_a_server_whose_task_has_another_name_accepts_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ACCEPTING", "some other name")
    acceptance = Acceptance()
    async with served(acceptance) as (ask, seen):
        acceptance.ended(REFUSAL)
        for _ in range(5):
            assert await ask(b"next", timeout=20) == b"next"
    assert len(seen) == 5


async def test_other_tasks_are_made_as_the_loop_makes_them() -> None:
    made: list[str] = []
    loop = asyncio.get_running_loop()

    def factory(loop: asyncio.AbstractEventLoop, coroutine: object, **options: object) -> asyncio.Task[object]:
        made.append(getattr(coroutine, "__name__", ""))
        return asyncio.Task(coroutine, loop=loop, **options)  # type: ignore[arg-type]

    loop.set_task_factory(factory)  # type: ignore[arg-type]
    try:
        async with served(Acceptance()) as (ask, _):
            assert await ask(b"one") == b"one"
        assert loop.get_task_factory() is factory
    finally:
        loop.set_task_factory(None)
    assert "_held_up" in made


async def test_pauses_follow_what_a_call_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, spent = [10.0], [5.0]
    monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module, "thread_time", lambda: spent[0])
    acceptance, waited = Acceptance(), list[float]()

    async def wait_for(waiting: Coroutine[None, None, bool], seconds: float) -> None:
        waiting.close()
        waited.append(seconds)
        raise TimeoutError

    monkeypatch.setattr(module.asyncio, "wait_for", wait_for)
    # A hundred calls in 0.2 s, of which the loop was busy 0.1: each took 1 ms, a tenth of the time is 10 ms.
    for _ in range(99):
        acceptance.ended()
    clock[0], spent[0] = 10.2, 5.1
    acceptance.ended(REFUSAL)
    pause = acceptance._wait()
    assert pause is not None
    await pause
    assert waited == [pytest.approx(0.01)]
    # Several refusals add up, but nobody is kept out for longer than 25 ms at once.
    for _ in range(5):
        acceptance.ended(REFUSAL)
    pause = acceptance._wait()
    assert pause is not None
    await pause
    assert waited[1:] == [pytest.approx(0.025)]
    clock[0] = 10.27
    assert acceptance._wait() is None
    assert len(waited) == 2


async def test_a_step_that_fails_or_is_cancelled_is_told() -> None:
    told: list[str] = []

    async def inner() -> None:
        while True:
            try:
                await asyncio.sleep(0)
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                told.append("cancelled")
                if len(told) == 2:
                    raise

    async def nothing() -> None:
        return

    async def whole() -> None:
        await module._stepwise(inner(), nothing)

    task = asyncio.create_task(whole())
    for _ in range(2):
        await asyncio.sleep(0.01)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == ["cancelled", "cancelled"]
