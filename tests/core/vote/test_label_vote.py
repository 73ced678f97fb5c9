"""Votes of labels: hand-computed cases, and batches against their queries one by one."""

from __future__ import annotations

import numpy as np
from plain_votes import mixed_probabilities, neighbour_probabilities
from precision import f32

from cbir.core.vote.label_vote import neighbour_vote, weighted_mean


def say(fused: list[float], codes: list[int], neighbours: int, classes: int) -> np.ndarray:
    """What the candidates of one query say, in a gallery of just these."""
    rows = np.arange(len(fused))[None]
    return neighbour_vote(np.array([fused], np.float32), rows, np.array(codes), neighbours, 0.1, classes)[0]


def test_labels_weigh_by_their_scores_by_hand() -> None:
    # Two cats at 0.9 and 0.8, a dog at 0.9, an image without a label that has no say; T = 0.1.
    e = np.exp(-1.0)
    found = say([0.9, 0.9, 0.8, 0.95], [0, 1, 0, -1], 4, 3)
    np.testing.assert_allclose(found, [(1 + e) / (2 + e), 1 / (2 + e), 0], atol=f32(32))


def test_without_labels_there_are_no_probabilities() -> None:
    assert not say([0.5], [-1], 5, 2).any()


def test_only_the_nearest_vote() -> None:
    found = say([0.1, 0.9, 0.8], [0, 1, 2], 2, 3)
    np.testing.assert_allclose(found, [0, 1 / (1 + np.exp(-1)), np.exp(-1) / (1 + np.exp(-1))], atol=f32(256))


def test_an_absent_opinion_leaves_its_share_to_the_others() -> None:
    a, b, silent = (np.array([said], np.float32) for said in ([1, 0], [0, 1], [0, 0]))

    def mean(*opinions: tuple[np.ndarray | None, float]) -> list[float]:
        found = weighted_mean(opinions)
        assert found is not None
        return found[0].tolist()

    np.testing.assert_allclose(mean((a, 0.2), (b, 0.3), (None, 0.5)), [0.4, 0.6], atol=f32(32))
    assert mean((a, 0.2), (silent, 0.3), (None, 0.5)) == [1, 0]
    # Nobody with a share speaks: the one without is heard.
    assert mean((a, 0.0), (silent, 1.0), (None, 1.0)) == [1, 0]


def test_neighbours_of_a_batch_vote_as_those_of_each_query() -> None:
    rng = np.random.default_rng(0)
    fused = rng.normal(size=(50, 30)).astype(np.float32)
    rows = np.sort(rng.permuted(np.tile(np.arange(100), (50, 1)), axis=1)[:, :30], axis=1)
    codes = rng.integers(-1, 6, 100)
    rows[3] = np.arange(30)
    codes[:30] = -1  # nobody votes in the fourth query
    rows[4] = -1  # nobody is there
    rows[5:, 20:] = -1
    found = neighbour_vote(fused, rows, codes, 7, 0.2, 6)
    for i in range(50):
        there = rows[i] >= 0
        expected = np.zeros(6)
        if there.any():
            expected = neighbour_probabilities(fused[i][there], codes[rows[i][there]], 7, 0.2, 6)
        np.testing.assert_allclose(found[i], expected, atol=f32(32))


def test_opinions_of_a_batch_are_mixed_as_those_of_each_query() -> None:
    rng = np.random.default_rng(1)
    opinions = [rng.dirichlet(np.ones(4), 40).astype(np.float32) for _ in range(3)]
    for said in opinions:
        said[rng.random(40) < 0.4] = 0
    for shares in ((0.5, 0.3, 0.2), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)):
        found = weighted_mean(list(zip(opinions, shares, strict=True)))
        assert found is not None
        for i in range(40):
            names = dict(zip("abc", (said[i] for said in opinions), strict=True))
            expected = mixed_probabilities(names, dict(zip("abc", shares, strict=True)))
            np.testing.assert_allclose(found[i], np.zeros(4) if expected is None else expected, atol=f32(32))
    assert weighted_mean([(None, 1.0), (None, 0.5)]) is None
