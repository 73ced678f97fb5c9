"""Threshold search against products with all rows, with a proposer that counts what it is asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from clustered_index import DIMS, clustered

from cbir.core.search import ThresholdSearch
from cbir.core.search.matrices.gallery_matrix import load_matrix
from cbir.core.vote import Conditions, fused_scores

COUNT = 2000


class Proposing:
    """Proposes the true nearest rows of each member."""

    def __init__(self, parts: list[np.ndarray], codes: list[int]) -> None:
        self.parts, self.codes, self.depths = parts, np.array(codes), []

    def propose(
        self, queries: np.ndarray, members: Sequence[int], depth: int, conditions: Conditions | None
    ) -> list[np.ndarray]:
        self.depths.append(depth)
        rows = np.arange(COUNT)
        if conditions is not None and conditions.labels is not None:
            rows = rows[np.isin(self.codes, conditions.labels)]
        stops = np.cumsum((0, *DIMS))
        found = []
        for query in queries:
            lists = []
            for m in members:
                scores = self.parts[m][rows].astype(np.float32) @ query[stops[m] : stops[m + 1]]
                lists.append(rows[np.argsort(-scores, kind="stable")[:depth]])
            found.append(np.unique(np.concatenate(lists)))
        return found


@pytest.fixture(scope="module")
def search() -> tuple[ThresholdSearch, Proposing, np.ndarray]:
    parts, codes = clustered(COUNT, 20, 0, noise=0.9)
    proposing = Proposing(parts, codes)
    whole = np.concatenate(parts, axis=1).astype(np.float32)
    return ThresholdSearch(load_matrix(parts, "cpu"), proposing), proposing, whole


def best(whole: np.ndarray, query: np.ndarray, weights: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    scores = (whole * np.repeat(weights, DIMS)) @ query
    scores[~allowed] = -np.inf
    return np.argsort(-scores, kind="stable")


def test_candidates_are_the_best_of_all_rows(search: tuple[ThresholdSearch, Proposing, np.ndarray]) -> None:
    threshold, proposing, whole = search
    queries = np.concatenate(clustered(30, 20, 3, noise=0.9)[0], axis=1).astype(np.float32)
    weights = np.random.default_rng(1).dirichlet(np.ones(3), 30).astype(np.float32)
    excluded = [(int(best(whole, q, w, np.ones(COUNT, bool))[0]),) for q, w in zip(queries, weights, strict=True)]
    proposing.depths.clear()
    found = threshold.find(queries, weights, [10] * 30, [40] * 30, excluded)
    fused = fused_scores(found.similarities, weights)
    for i, (query, weight) in enumerate(zip(queries, weights, strict=True)):
        allowed = np.ones(COUNT, bool)
        allowed[excluded[i][0]] = False
        wanted = best(whole, query, weight, allowed)
        assert set(found.rows[i]) == set(wanted[:40])
        # The bound is the score of the best row that is no candidate.
        assert found.score_bound[i] == pytest.approx((whole[wanted[40]] * np.repeat(weight, DIMS)) @ query, abs=1e-5)
        assert fused[i].min() >= found.score_bound[i] - 1e-6
    assert proposing.depths[0] == 128
    assert len(proposing.depths) > 1, "no query of this test needed a second round"


def test_rows_of_labels(search: tuple[ThresholdSearch, Proposing, np.ndarray]) -> None:
    threshold, proposing, whole = search
    query = np.concatenate(clustered(1, 20, 4)[0], axis=1).astype(np.float32)
    weights = np.full((1, 3), 1 / 3, np.float32)
    allowed = np.isin(proposing.codes, (2, 5))
    rows = np.flatnonzero(allowed)[::2]
    # The second label adds more than the cosines differ by, so its rows come first.
    bonus = np.where(proposing.codes[rows] == 5, 0.4, 0.1).astype(np.float32)
    picked, similarities = threshold.of_labels(rows, bonus, [2, 5], query, weights, 40)
    assert similarities.shape == (1, 3, picked.shape[1])
    scores = (whole[rows] * np.repeat(weights[0], DIMS)) @ query[0] + bonus
    assert set(picked[0]) == set(rows[np.argsort(-scores)][:40])


def test_nothing_is_allowed(search: tuple[ThresholdSearch, Proposing, np.ndarray]) -> None:
    query = np.ones((1, sum(DIMS)), np.float32)
    weights = np.full((1, 3), 1 / 3, np.float32)
    found = search[0].find(query, weights, [5], [5], [()], np.zeros(COUNT, bool))
    assert found.rows.shape == (1, 0)
