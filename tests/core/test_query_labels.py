"""Label votes of a batch are those of its queries one by one."""

from __future__ import annotations

import numpy as np

from cbir.core.label_vote import mixed_probabilities, neighbour_probabilities
from cbir.core.query_labels import mixed, neighbours_say


def test_neighbours_of_a_batch_vote_as_those_of_each_query() -> None:
    rng = np.random.default_rng(0)
    fused = rng.normal(size=(50, 30)).astype(np.float32)
    rows = np.sort(rng.permuted(np.tile(np.arange(100), (50, 1)), axis=1)[:, :30], axis=1)
    codes = rng.integers(-1, 6, 100)
    rows[3] = np.arange(30)
    codes[:30] = -1  # nobody votes in the fourth query
    rows[4] = -1  # nobody is there
    rows[5:, 20:] = -1
    found = neighbours_say(fused, rows, codes, 7, 0.2, 6)
    for i in range(50):
        there = rows[i] >= 0
        expected = np.zeros(6)
        if there.any():
            expected = neighbour_probabilities(fused[i][there], codes[rows[i][there]], 7, 0.2, 6)
        np.testing.assert_allclose(found[i], expected, atol=1e-6)


def test_opinions_of_a_batch_are_mixed_as_those_of_each_query() -> None:
    rng = np.random.default_rng(1)
    opinions = [rng.dirichlet(np.ones(4), 40).astype(np.float32) for _ in range(3)]
    for said in opinions:
        said[rng.random(40) < 0.4] = 0
    for shares in ((0.5, 0.3, 0.2), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)):
        found = mixed(list(zip(opinions, shares, strict=True)))
        assert found is not None
        for i in range(40):
            names = dict(zip("abc", (said[i] for said in opinions), strict=True))
            expected = mixed_probabilities(names, dict(zip("abc", shares, strict=True)))
            np.testing.assert_allclose(found[i], np.zeros(4) if expected is None else expected, atol=1e-6)
    assert mixed([(None, 1.0), (None, 0.5)]) is None
