"""Fusion: hand-computed cases and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from precision import f32

from cbir.core.vote import normalised_weights, rank_contributions, vote_contributions
from cbir.core.vote.top_k import ranks_of


def test_weighted_vote_by_hand() -> None:
    similarities = np.array([[0.9, 0.1], [0.5, 0.6]], np.float32)
    weights = normalised_weights(np.array([3, 1], np.float32))
    votes = vote_contributions(similarities, weights)
    np.testing.assert_allclose(votes, [[0.675, 0.025], [0.375, 0.15]], atol=f32(32))
    np.testing.assert_allclose(votes.sum(axis=1), [0.7, 0.525], atol=f32(32))


def test_ranks_and_rank_fusion_by_hand() -> None:
    similarities = np.array([[0.9, 0.1], [0.5, 0.6], [0.5, 0.2]], np.float32)
    ranks = ranks_of(np.ascontiguousarray(similarities.T[None]), np.arange(3)[None])[0]
    # Equal similarities: the earlier candidate is ahead.
    np.testing.assert_array_equal(ranks, [[1, 3], [2, 1], [3, 2]])
    votes = rank_contributions(ranks, np.array([0.5, 0.5], np.float32))
    np.testing.assert_allclose(votes[0], [0.5, 0.5 * 61 / 63], atol=f32(32))


@given(st.lists(st.floats(0.0009765625, 1024, width=32), min_size=2, max_size=5), st.floats(0.5, 64, width=32))
def test_scale_of_the_weights_does_not_matter(weights: list[float], factor: float) -> None:
    w = np.array(weights, np.float32)
    np.testing.assert_allclose(normalised_weights(w), normalised_weights(w * np.float32(factor)), rtol=f32(2048))
    assert normalised_weights(w).sum() == pytest.approx(1, abs=f32(256))
