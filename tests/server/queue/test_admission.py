"""Admission and forecasts, without a server."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from cbir.server.engine import Engine, EngineQuery, ImageBytes, StoredImage
from cbir.server.limits import Limits
from cbir.server.queue import Admission, Flight, OverloadedError
from cbir.server.queue.fair_queue import Lane
from cbir.server.queue.flight import LIGHT
from cbir.server.queue.forecast import Forecast, Pace


def test_admission_counts_cost_and_bytes() -> None:
    admission = Admission(2, 100, "queries")
    admission.take(Lane("a"), 1, 60, 0.5)
    with pytest.raises(OverloadedError) as caught:
        admission.take(Lane("b"), 1, 60, 0.5)
    assert caught.value.retry_after == pytest.approx(0.5)
    assert str(caught.value) == "the server is busy with queries: try again in 0.50 seconds"
    assert not admission.is_full(1)
    admission.take(Lane("b"), 1, 40, 0.5)
    assert admission.is_full(LIGHT)
    with pytest.raises(OverloadedError):
        admission.take(Lane("c"), LIGHT, 0, 1.0)
    for size in (60, 40):
        admission.give_back(Lane("a" if size == 60 else "b"), 1, size)
    assert (admission.used, admission.used_bytes, admission.refused, admission.held) == (0, 0, 2, {})
    with admission.admit(Lane("a"), 1, 1000, 0.5):  # alone, even a large one fits
        assert admission.used == 1
    assert admission.used == 0


def test_the_time_to_retry_is_neither_none_nor_for_ever() -> None:
    admission = Admission(1, 1, "queries")
    admission.take(Lane("a"), 1, 0, 0)
    for wait, told in ((0.0, 0.05), (3.0, 3.0), (1e6, 60.0)):
        with pytest.raises(OverloadedError) as caught:
            admission.take(Lane("a"), 1, 0, wait)
        assert caught.value.retry_after == told


def test_whoever_floods_the_queue_leaves_room_for_others() -> None:
    admission = Admission(10, 1000, "queries")

    def press(lane: str) -> int:
        count = 0
        while True:
            try:
                admission.take(Lane(lane), 1, 0, 0)
            except OverloadedError:
                return count
            count += 1

    # The k-th of one lane needs k <= 4 times the room before it: 8 of 10; the next lane finds 2 free, and so on.
    assert [press(lane) for lane in "abcd"] == [8, 2, 0, 0]
    admission.give_back(Lane("a"), 1, 0)
    # 1 is free: lane b has 2 and may have 4, lane a has 7 and may not have more.
    assert press("a") == 0
    assert press("b") == 1


def test_names_that_a_caller_gives_himself_divide_his_share_and_add_nothing_to_it() -> None:
    admission = Admission(100, 1000, "queries")

    def press(identity: str, client: str | None = None) -> int:
        """With a name of its own for each query where none is given."""
        count = 0
        while True:
            try:
                admission.take(Lane(identity, client or f"new-{count}"), 1, 0, 0)
            except OverloadedError:
                return count
            count += 1

    # 80 of 100, as anyone who comes alone, and the rest is there for others.
    assert press("flood") == 80
    assert press("honest", "me") > 10
    admission = Admission(100, 1000, "queries")
    # One of his names leaves room for another of them: the k-th needs k <= 4 (4 (100 - k + 1) - (k - 1)).
    assert press("flood", "first") == 77
    assert press("flood", "second") == 3
    assert press("honest", "me") > 10
    # First's queries go on waiting for themselves: of those 77 one comes before the next of "third".
    assert admission.ahead(Lane("flood", "third"), 1) == 2
    assert admission.ahead(Lane("flood", "first"), 1) == 80
    assert admission.ahead(Lane("nobody"), 1) == 0


async def test_streams_take_turns_for_room_by_who_opened_them() -> None:
    admission = Admission(1, 100, "queries")
    order: list[str] = []

    async def enter(identity: str, client: str) -> None:
        await admission.take_in_turn(Lane(identity, client), 1, 0)
        order.append(client)
        admission.give_back(Lane(identity, client), 1, 0)

    await admission.take_in_turn(Lane("a"), 1, 0)
    waiting = [asyncio.create_task(enter("flood", f"f{i}")) for i in range(5)]
    await asyncio.sleep(0)
    waiting.append(asyncio.create_task(enter("honest", "h")))
    await asyncio.sleep(0)
    admission.give_back(Lane("a"), 1, 0)
    await asyncio.gather(*waiting)
    assert order == ["f0", "h", "f1", "f2", "f3", "f4"]


async def test_streams_wait_for_room_in_the_order_they_came() -> None:
    admission = Admission(2, 100, "queries")
    order: list[str] = []

    async def enter(name: str, cost: float, size: int = 0) -> None:
        await admission.take_in_turn(Lane(name), cost, size)
        order.append(name)

    await enter("a", 1, 10)
    await enter("b", 1, 10)
    waiting = [asyncio.create_task(enter(name, cost)) for name, cost in (("c", 1), ("d", 1), ("e", LIGHT))]
    await asyncio.sleep(0)
    assert order == ["a", "b"]
    waiting[1].cancel()
    await asyncio.sleep(0)
    admission.give_back(Lane("b"), 1, 10)
    await asyncio.sleep(0)
    # It was handed to c in the same moment, so that nobody who comes now can take it.
    assert (order, admission.used) == (["a", "b", "c"], 2)
    admission.give_back(Lane("a"), 1, 10)
    await waiting[2]
    assert (order, admission.used, admission.used_bytes) == (["a", "b", "c", "e"], 1 + LIGHT, 0)


async def test_one_who_leaves_as_it_is_let_in_gives_its_room_back() -> None:
    admission = Admission(1, 100, "queries")
    await admission.take_in_turn(Lane("a"), 1, 0)
    waiting = asyncio.create_task(admission.take_in_turn(Lane("b"), 1, 0))
    await asyncio.sleep(0)
    admission.give_back(Lane("a"), 1, 0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (admission.used, admission.held) == (0, {})


def test_pace_follows_what_it_is_told() -> None:
    pace = Pace(1.0)
    for _ in range(50):
        pace.add(0.32, 32)
    assert pace.seconds_each == pytest.approx(0.01, rel=0.01)


def flight(engine: Engine, *, image: bool = True, seconds: float | None = None) -> Flight:
    source = ImageBytes(b"x") if image else StoredImage("twin")
    deadline = None if seconds is None else monotonic() + seconds
    return Flight(engine, EngineQuery(source), Lane("me"), deadline, lambda outcome: None)


def test_what_would_expire_in_the_queue_is_refused_at_once(engine: Engine) -> None:
    forecast = Forecast(threads=2)
    forecast.heavy.seconds_each, forecast.decode.seconds_each = 0.1, 0.3
    forecast.check(flight(engine, seconds=0.01), 0.0, [])  # an idle server takes everything
    for _ in range(9):
        forecast.count(flight(engine), 1)
    forecast.count(flight(engine, image=False), 1)
    forecast.light.seconds_each = 0.05
    assert forecast.under_way == 10
    # Decoding takes 9 x 0.3 / 2, longer than 9 x 0.1 + 0.05 in the engine.
    assert forecast.wait() == pytest.approx(1.35)
    held = [8.0, 1.125]
    forecast.check(flight(engine), 8.0, held)  # it has all the time in the world
    forecast.check(flight(engine, seconds=2), 8.0, held)
    with pytest.raises(OverloadedError) as caught:
        forecast.check(flight(engine, seconds=1), 8.0, held)
    assert caught.value.reason == "DEADLINE_UNREACHABLE"
    # Longer than there is time, so that nobody who heeds it comes again.
    assert caught.value.retry_after > 1.35
    # One who has nothing in the queue does not wait for all of the flood: 1 of 8, 1 of 1.125, and itself.
    with pytest.raises(OverloadedError):
        forecast.check(flight(engine, seconds=0.3), 0.0, held)
    assert 0.429 < 1.45 * 3 / 10.125 < 0.431
    forecast.check(flight(engine, seconds=0.6), 0.0, held)
    # In time, but only if the forecast is right.
    with pytest.raises(OverloadedError, match="too close"):
        forecast.check(flight(engine, seconds=0.5), 0.0, held)


def test_a_flood_gets_few_different_answers(engine: Engine) -> None:
    forecast = Forecast(threads=1)
    for _ in range(9):
        forecast.count(flight(engine), 1)
    told = set()
    for i in range(100):
        forecast.heavy.seconds_each = 0.12 + i / 10_000
        with pytest.raises(OverloadedError) as caught:
            forecast.check(flight(engine, seconds=0.9 + i / 1000), 9.0, [9.0])
        told.add((str(caught.value), caught.value.retry_after))
        # 9 in the queue and this one; the steps are upwards for the wait, and down for the time that is left.
        assert caught.value.retry_after >= 10 * forecast.heavy.seconds_each
    assert len(told) <= 4
    assert any("needs about 1.30 seconds and the query has 0.90 left" in text for text, _ in told)
    # Of a query that has little time, hundredths are told.
    forecast.heavy.seconds_each = 0.1
    with pytest.raises(OverloadedError, match=r"needs about 1\.00 seconds and the query has 0\.0[67] left"):
        forecast.check(flight(engine, seconds=0.08), 9.0, [9.0])


def test_batches_set_the_pace(engine: Engine) -> None:
    forecast = Forecast(threads=1)
    before = forecast.light.seconds_each
    for _ in range(50):
        forecast.note_batch([flight(engine)] * 8 + [flight(engine, image=False)] * 8, 0.4)
    assert forecast.heavy.seconds_each == pytest.approx(0.05, rel=0.01)
    assert forecast.light.seconds_each == before
    for _ in range(50):
        forecast.note_batch([flight(engine, image=False)] * 8, 0.02)
    assert forecast.light.seconds_each == pytest.approx(0.0025, rel=0.01)


def test_buckets_are_powers_of_two_up_to_the_largest_batch() -> None:
    assert Limits(max_batch=1).buckets == (1,)
    assert Limits(max_batch=2).buckets == (1, 2)
    assert Limits(max_batch=24).buckets == (1, 2, 4, 8, 16, 24)
    assert Limits(max_batch=32).buckets == (1, 2, 4, 8, 16, 32)


def test_what_is_not_read_yet_is_refused_only_where_no_query_could_be_in_time(engine: Engine) -> None:
    forecast = Forecast(threads=2)
    forecast.light.seconds_each = 0.2
    forecast.check_unread(monotonic() + 0.01)  # an idle server takes everything
    forecast.count(flight(engine), 1)
    forecast.check_unread(None)
    forecast.check_unread(monotonic() + 0.3)
    with pytest.raises(OverloadedError) as caught:
        forecast.check_unread(monotonic() + 0.1)
    assert caught.value.reason == "DEADLINE_UNREACHABLE"
    assert caught.value.retry_after >= 0.2
