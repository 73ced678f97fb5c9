"""Turns between clients, worked out by hand."""

from __future__ import annotations

import pytest

from cbir.server.queue.fair_queue import FairQueue, Lane


def drain(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def fill(items: dict[str, float | list[float]]) -> FairQueue[str]:
    """Lanes with items of these costs; ``a0`` is the first of lane ``a``."""
    queue: FairQueue[str] = FairQueue()
    for lane, costs in items.items():
        for number, cost in enumerate(costs if isinstance(costs, list) else [costs]):
            queue.push(Lane(lane), f"{lane}{number}", cost)
    return queue


def test_one_lane_is_first_come_first_served() -> None:
    assert drain(fill({"a": [1, 0.125, 1]})) == ["a0", "a1", "a2"]


def test_lanes_take_turns() -> None:
    assert drain(fill({"a": [1] * 5, "b": [1], "c": [1, 1]})) == ["a0", "b0", "c0", "a1", "c1", "a2", "a3", "a4"]


def test_a_turn_is_worth_one_image_or_as_many_light_queries() -> None:
    queue = fill({"a": [1] * 3, "b": [0.25] * 9})
    assert drain(queue) == ["a0", "b0", "b1", "b2", "b3", "a1", "b4", "b5", "b6", "b7", "a2", "b8"]


def test_what_a_turn_leaves_over_is_kept_while_the_lane_has_work() -> None:
    # 0.75 leaves 0.25, too little for the next; with it the second turn is worth 1.25.
    assert drain(fill({"a": [0.75, 1, 0.25], "b": [1, 1]})) == ["a0", "b0", "a1", "a2", "b1"]


def test_an_idle_lane_saves_nothing_up() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(50):
        queue.push(Lane("a"), "earlier", 0.125)
        assert queue.pop() == "earlier"
    for number in range(3):
        queue.push(Lane("a"), f"a{number}", 1)
        queue.push(Lane("b"), f"b{number}", 1)
    assert drain(queue) == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_items_can_be_taken_out() -> None:
    queue = fill({"a": [1, 1, 1], "b": [1]})
    a1 = "".join(["a", "1"])
    assert not queue.remove(Lane("a"), a1), "an equal item is not the same item"
    assert not queue.remove(Lane("c"), a1)
    first = queue.pop()
    assert not queue.remove(Lane("a"), first)
    queue.push(Lane("b"), first, 1)
    assert queue.remove(Lane("b"), first)
    assert drain(queue) == ["b0", "a1", "a2"]
    with pytest.raises(IndexError):
        queue.pop()


def test_a_lane_whose_last_item_is_taken_out_is_forgotten() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push(Lane("a"), first := "first", 1)
    queue.push(Lane("b"), "b0", 1)
    assert queue.remove(Lane("a"), first)
    assert len(queue) == 1
    assert drain(queue) == ["b0"]
    queue.push(Lane("a"), "again", 1)
    assert drain(queue) == ["again"]


def test_clients_of_one_identity_share_its_turns() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(4):
        queue.push(Lane("flood", f"name-{number}"), f"flood{number}", 1)
    for number in range(2):
        queue.push(Lane("flood", "name-0"), f"again{number}", 1)
    for number in range(3):
        queue.push(Lane("honest"), f"honest{number}", 1)
    assert queue.peek() == "flood0"
    assert drain(queue) == [
        "flood0", "honest0", "flood1", "honest1", "flood2", "honest2", "flood3", "again0", "again1",
    ]  # fmt: skip


def test_what_is_taken_out_of_a_share_leaves_the_others_in_their_order() -> None:
    queue: FairQueue[str] = FairQueue()
    first, *others = "abc"
    for client in (first, *others):
        queue.push(Lane("x", client), client, 1)
    queue.push(Lane("y"), "y", 1)
    assert queue.remove(Lane("x", "a"), first)
    assert not queue.remove(Lane("x", "a"), first)
    assert not queue.remove(Lane("z"), first)
    assert drain(queue) == ["b", "y", "c"]
    with pytest.raises(IndexError):
        queue.pop()
