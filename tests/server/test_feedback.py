"""Rocchio by hand-computed cases."""

from __future__ import annotations

import numpy as np
import pytest

from cbir.core.errors import QueryError
from cbir.server.feedback import apply_feedback

NONE = np.zeros((0, 4), np.float32)


def rows(*values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, np.float32)


def unit(*values: float) -> np.ndarray:
    vector = np.array(values)
    return vector / np.linalg.norm(vector)


def test_positive_and_negative_examples_move_each_block() -> None:
    query = np.array([1, 0, 0, 1], np.float32)
    moved = apply_feedback(query, rows((0, 1, 0, 1), (0, 1, 1, 0)), rows((-1, 0, 0, 1)), (2, 2))
    # Block one: (1, 0) + 0.75·(0, 1) - 0.25·(-1, 0); block two: (0, 1) + 0.75·(0.5, 0.5) - 0.25·(0, 1).
    np.testing.assert_allclose(moved[:2], unit(1.25, 0.75), rtol=1e-6)
    np.testing.assert_allclose(moved[2:], unit(0.375, 1.125), rtol=1e-6)


def test_positives_alone_are_the_query() -> None:
    moved = apply_feedback(None, rows((1, 0, 0, 1), (0, 1, 0, 1)), rows((0, 1, 1, 0)), (2, 2))
    np.testing.assert_allclose(moved[:2], unit(0.5, 0.25), rtol=1e-6)
    np.testing.assert_allclose(moved[2:], unit(-0.25, 1), rtol=1e-6)


def test_a_member_without_a_say_gets_none() -> None:
    moved = apply_feedback(np.array([1, 0, 0, 0], np.float32), rows((0, 1, 0, 1)), NONE, (2, 2))
    assert not moved[2:].any()
    assert moved[:2].any()


def test_the_query_is_not_changed_in_place() -> None:
    query = np.array([1, 0, 0, 1], np.float32)
    apply_feedback(query, rows((0, 1, 1, 0)), NONE, (2, 2))
    np.testing.assert_array_equal(query, [1, 0, 0, 1])


@pytest.mark.parametrize(
    ("query", "positives", "negatives"),
    [(None, NONE, rows((1, 0, 0, 1))), (None, rows((1, 0, 0, 1)), rows((4, 0, 0, 4)))],
)
def test_nothing_left_to_look_for(query: None, positives: np.ndarray, negatives: np.ndarray) -> None:
    with pytest.raises(QueryError) as caught:
        apply_feedback(query, positives, negatives, (2, 2))
    assert caught.value.reason == "EMPTY_QUERY"
