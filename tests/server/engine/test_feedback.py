"""Rocchio by hand-computed cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from precision import f16, f32

from cbir.core.errors import QueryError
from cbir.server.engine.feedback import apply_feedback

NONE = np.zeros((0, 4), np.float32)


def rows(*values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, np.float32)


def unit(*values: float) -> np.ndarray:
    vector = np.array(values)
    return vector / np.linalg.norm(vector)


def test_positive_and_negative_examples_move_each_block() -> None:
    query = np.array([1, 0, 0, 1], np.float32)
    moved = apply_feedback(query, rows((0, 1, 0, 1), (0, 1, 1, 0)), rows((-1, 0, 0, 1)), (2, 2))
    # Block one: (1, 0) + (0, 1) - 0.5·(-1, 0); block two: (0, 1) + (0.5, 0.5) - 0.5·(0, 1).
    np.testing.assert_allclose(moved[:2], unit(1.5, 1), rtol=f32(32))
    np.testing.assert_allclose(moved[2:], unit(0.5, 1), rtol=f32(32))


def test_positives_alone_are_the_query() -> None:
    moved = apply_feedback(None, rows((1, 0, 0, 1), (0, 1, 0, 1)), rows((0, 1, 1, 0)), (2, 2))
    # Block one: (0.5, 0.5) - 0.25·(0, 1); block two: (0, 1) - 0.25·(1, 0).
    np.testing.assert_allclose(moved[:2], unit(0.5, 0.25), rtol=f32(32))
    np.testing.assert_allclose(moved[2:], unit(-0.25, 1), rtol=f32(32))


def test_negatives_alone_push_by_a_quarter() -> None:
    moved = apply_feedback(np.array([1, 0, 0, 1], np.float32), NONE, rows((0, 1, 1, 0), (0, 1, -1, 0)), (2, 2))
    np.testing.assert_allclose(moved[:2], unit(1, -0.25), rtol=f32(32))
    np.testing.assert_allclose(moved[2:], (0, 1), atol=f32(32))


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


def drawn(seed: int, count: int) -> np.ndarray:
    """``count`` vectors of two unit blocks."""
    vectors = np.random.default_rng([seed, count]).normal(size=(count, 2, 2))
    return (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).reshape(count, 4).astype(np.float32)


sizes = st.integers(1, 6)
seeds = st.integers(0, 2**32)


@given(seed=seeds, positives=sizes, negatives=sizes)
def test_the_order_of_examples_does_not_matter(seed: int, positives: int, negatives: int) -> None:
    query, likes, others = drawn(seed, 1)[0], drawn(seed + 1, positives), drawn(seed + 2, negatives)
    shuffle = np.random.default_rng(seed).permutation
    moved = apply_feedback(query, likes, others, (2, 2))
    again = apply_feedback(query, likes[shuffle(positives)], others[shuffle(negatives)], (2, 2))
    np.testing.assert_allclose(moved, again, atol=f16(2))


@given(seed=seeds, positives=sizes, scale=st.floats(0.125, 8))
def test_a_common_scale_does_not_matter(seed: int, positives: int, scale: float) -> None:
    query, likes, others = drawn(seed, 1)[0], drawn(seed + 1, positives), drawn(seed + 2, 2)
    moved = apply_feedback(query, likes, others, (2, 2))
    factor = np.float32(scale)
    np.testing.assert_allclose(
        moved, apply_feedback(factor * query, factor * likes, factor * others, (2, 2)), atol=f16(2)
    )


@given(seed=seeds, positives=sizes)
def test_positives_pull_and_negatives_push(seed: int, positives: int) -> None:
    query, examples = drawn(seed, 1)[0], drawn(seed + 1, positives)
    centre = examples.mean(axis=0)
    for block in (slice(0, 2), slice(2, 4)):
        before = query[block] @ centre[block]
        assert apply_feedback(query, examples, NONE, (2, 2))[block] @ centre[block] >= before - 1e-5
        assert apply_feedback(query, NONE, examples, (2, 2))[block] @ centre[block] <= before + 1e-5
