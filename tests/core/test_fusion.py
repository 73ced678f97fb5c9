"""Fusion: hand-computed cases and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbir.core.fusion import (
    label_probabilities,
    member_ranks,
    normalised_weights,
    rank_contributions,
    vote_contributions,
)


def test_weighted_vote_by_hand() -> None:
    similarities = np.array([[0.9, 0.1], [0.5, 0.6]], np.float32)
    weights = normalised_weights(np.array([3, 1], np.float32))
    votes = vote_contributions(similarities, weights)
    np.testing.assert_allclose(votes, [[0.675, 0.025], [0.375, 0.15]], atol=1e-6)
    np.testing.assert_allclose(votes.sum(axis=1), [0.7, 0.525], atol=1e-6)


def test_ranks_and_rank_fusion_by_hand() -> None:
    similarities = np.array([[0.9, 0.1], [0.5, 0.6], [0.5, 0.2]], np.float32)
    ranks = member_ranks(similarities)
    # Equal similarities: the earlier candidate is ahead.
    np.testing.assert_array_equal(ranks, [[1, 3], [2, 1], [3, 2]])
    votes = rank_contributions(ranks, np.array([0.5, 0.5], np.float32))
    np.testing.assert_allclose(votes[0], [0.5, 0.5 * 61 / 63], atol=1e-6)


def test_label_probabilities_by_hand() -> None:
    # Two cats at 0.9 and 0.8, a dog at 0.9, an image without a label that has no say; T = 0.1.
    fused = np.array([0.9, 0.9, 0.8, 0.95], np.float32)
    p = label_probabilities(fused, np.array([0, 1, 0, -1]), 0.1, 3)
    e = np.exp(-1.0)
    np.testing.assert_allclose(p, [(1 + e) / (2 + e), 1 / (2 + e), 0], atol=1e-6)


def test_no_labels_no_probabilities() -> None:
    assert not label_probabilities(np.array([0.5], np.float32), np.array([-1]), 0.1, 2).any()


@given(st.lists(st.floats(0.0009765625, 1024, width=32), min_size=2, max_size=5), st.floats(0.5, 64, width=32))
def test_scale_of_the_weights_does_not_matter(weights: list[float], factor: float) -> None:
    w = np.array(weights, np.float32)
    np.testing.assert_allclose(normalised_weights(w), normalised_weights(w * np.float32(factor)), rtol=1e-4)
    assert normalised_weights(w).sum() == pytest.approx(1, abs=1e-5)


@given(st.integers(0, 1000))
def test_candidates_may_come_in_any_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    similarities = rng.normal(size=(9, 3)).astype(np.float32)
    order = rng.permutation(9)
    np.testing.assert_array_equal(member_ranks(similarities)[order], member_ranks(similarities[order]))
