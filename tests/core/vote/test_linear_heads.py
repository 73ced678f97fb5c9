"""Linear heads: the fit by hand, and the joined heads' probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from precision import f32

from cbir.core.vote import Heads, LinearHead, fit_head


def test_ridge_head_by_hand() -> None:
    # One component, x = -1 (class 0) and +1 (class 1).  Centred X'X = 2, X'Y = [-1, 1]; ridge adds 0.5 * 2 = 1:
    # w = [-1/3, 1/3], bias = [1/2, 1/2].
    head = fit_head(np.array([[-1.0], [1.0]], np.float32), np.array([0, 1]), 2, ridge=0.5)
    np.testing.assert_allclose(head.weight, [[-1 / 3, 1 / 3]], atol=f32(32))
    np.testing.assert_allclose(head.bias, [0.5, 0.5], atol=f32(32))
    np.testing.assert_allclose(head.scores(np.array([[0.75]], np.float32)), [[0.25, 0.75]], atol=f32(32))


def test_heads_ignore_images_without_a_label() -> None:
    rng = np.random.default_rng(0)
    z, codes = rng.normal(size=(40, 4)).astype(np.float32), np.arange(40) % 3
    more = np.concatenate([z, rng.normal(size=(9, 4)).astype(np.float32)])
    a, b = fit_head(z, codes, 3), fit_head(more, np.concatenate([codes, np.full(9, -1)]), 3)
    np.testing.assert_allclose(a.weight, b.weight, atol=f32(32))


def test_heads_need_a_label() -> None:
    with pytest.raises(ValueError, match="no image has a label"):
        fit_head(np.eye(3, dtype=np.float32), np.full(3, -1), 2)


@given(st.integers(0, 1000))
def test_heads_do_not_depend_on_the_order_of_the_gallery(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z, codes, order = rng.normal(size=(20, 3)).astype(np.float32), rng.integers(-1, 4, 20), rng.permutation(20)
    codes[0] = 0
    a, b = fit_head(z, codes, 4), fit_head(z[order], codes[order], 4)
    np.testing.assert_allclose(a.weight, b.weight, atol=f32(2048))
    np.testing.assert_allclose(a.bias, b.bias, atol=f32(2048))


def test_members_heads_are_averaged_by_weight_and_silent_members_left_out() -> None:
    sure = LinearHead(np.array([[1.0, 0.0]], np.float32), np.zeros(2, np.float32))
    contrary = LinearHead(np.array([[0.0, 1.0]], np.float32), np.zeros(2, np.float32))
    queries = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], np.float32)
    weights = np.tile(np.array([0.2, 0.6, 0.2], np.float32), (3, 1))
    found = Heads([None, sure, contrary], (1, 1, 1)).probabilities(queries, weights, temperature=0.5)
    # First query: scores 0.75 and 0.25, softmax of (1.5, 0.5).  Second: only the first head speaks: (2, 0).  Third: a
    # member speaks that has no head.
    np.testing.assert_allclose(found[:, 0], [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-2)), 0], atol=f32(32))
    np.testing.assert_allclose(found[:, 1], [1 / (1 + np.exp(1)), 1 / (1 + np.exp(2)), 0], atol=f32(32))
