"""Database-side augmentation and query expansion."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from precision import f32

from cbir.core.metric import augmented, expanded, expansion, normalise
from cbir.core.metric.expansion import block_normalise, nearest


def test_expansion_by_hand() -> None:
    # q = (1, 0), a neighbour (0, 1) of similarity 0.5 with alpha 2 weighs 0.25: q' = unit(1, 0.25).
    moved = expanded(
        np.array([[1, 0]], np.float32), np.array([[[0, 1]]], np.float32), np.array([[0.5]], np.float32), 2.0, (2,)
    )
    np.testing.assert_allclose(moved[0], np.array([1, 0.25]) / np.hypot(1, 0.25), atol=f32(32))


def test_members_without_a_say_get_none() -> None:
    queries = np.array([[1, 0, 0, 0], [0, 0, 1, 0]], np.float32)
    near = np.array([[[0, 1, 0, 1]], [[0, 1, 0, 1]]], np.float32)
    moved = expanded(queries, near, np.ones((2, 1), np.float32), 1.0, (2, 2))
    np.testing.assert_allclose(moved, [[2**-0.5, 2**-0.5, 0, 0], [0, 0, 2**-0.5, 2**-0.5]], atol=f32(32))


def test_augmentation_by_hand() -> None:
    # Rows at 0, 60 and 180 degrees; K = 2, alpha = 1: the first becomes unit(1 * (0 deg) + 0.5 * (60 deg)).
    angles = np.deg2rad([0, 60, 180])
    matrix = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    sharp = augmented(matrix, (2,), 2, 1.0)
    want = normalise((matrix[0] + 0.5 * matrix[1])[None])[0]
    np.testing.assert_allclose(sharp[0], want, atol=f32(32))
    # The nearest of 180 degrees is 60 degrees, of negative similarity, which counts as none.
    np.testing.assert_allclose(sharp[2], matrix[2], atol=f32(32))


def test_one_neighbour_is_the_image_itself() -> None:
    matrix = block_normalise(np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32), (5, 3))
    np.testing.assert_allclose(augmented(matrix, (5, 3), 1, 3.0), matrix, atol=f32(256))


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_augmentation_ignores_order_and_the_scale_of_weights(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    matrix = block_normalise(rng.normal(size=(25, 7)).astype(np.float32), (4, 3))
    order, weights = rng.permutation(25), rng.uniform(0.1, 1, 2)
    a = augmented(matrix, (4, 3), 4, 2.0, weights)
    np.testing.assert_allclose(augmented(matrix[order], (4, 3), 4, 2.0, scale * weights), a[order], atol=f32(2048))


def test_large_galleries_are_searched_by_a_graph_that_agrees() -> None:
    rng = np.random.default_rng(0)
    vectors = normalise(rng.normal(size=(2000, 16)).astype(np.float32))
    exact = nearest(vectors[:200], vectors, 10)[0]
    before, expansion.EXACT_ROWS = expansion.EXACT_ROWS, 1000
    try:
        graph = nearest(vectors[:200], vectors, 10)[0]
    finally:
        expansion.EXACT_ROWS = before
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, graph, strict=True)])
    assert recall > 0.95
