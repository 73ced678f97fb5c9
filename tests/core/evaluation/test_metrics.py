"""Measures: hand-computed cases and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbir.core.evaluation import average_precision, bootstrap_interval, calibration_error, measure, reliability
from cbir.core.evaluation.metrics import cmc, precision, r_average_precision, recall


def rel(*ranks: int) -> np.ndarray:
    """Ten ranks of which the named ones (from 1) are relevant."""
    return np.isin(np.arange(1, 11), ranks)


@pytest.mark.parametrize(
    ("relevant", "total", "expected"),
    [
        (rel(1, 3), 2, (1 / 1 + 2 / 3) / 2),
        (rel(1, 3), 5, (1 / 1 + 2 / 3) / 5),  # three relevant images were not found
        (rel(1, 3), 50, (1 / 1 + 2 / 3) / 10),  # more than ten cannot be shown
        (rel(10), 1, 0.1),
        (rel(), 4, 0.0),
        (np.array([True]), 20, 0.1),  # returning fewer images is not rewarded
        (np.ones(10, bool), 10, 1.0),
        (np.array([], bool), 3, 0.0),
    ],
)
def test_average_precision_at_10_by_hand(relevant: np.ndarray, total: int, expected: float) -> None:
    assert average_precision(relevant, total, 10) == pytest.approx(expected)


def test_the_other_measures_by_hand() -> None:
    relevant = rel(2, 4)
    assert precision(relevant, 10) == pytest.approx(0.2)
    assert recall(relevant, 8, 10) == pytest.approx(0.25)
    assert cmc(relevant, 1) == 0
    assert cmc(relevant, 2) == 1
    assert r_average_precision(relevant, 4) == pytest.approx((1 / 2 + 2 / 4) / 4)


def test_queries_without_relevant_images_are_left_out_and_counted() -> None:
    result = measure([rel(1), rel(), rel(2)], [1, 0, 1], ["cat", "dog", "cow"])
    assert (result.queries, result.without_relevant) == (2, 1)
    assert result.map_at_10 == pytest.approx((1 + 0.5) / 2)
    assert result.per_class == {"cat": 1.0, "cow": 0.5}


def test_macro_average_counts_classes_not_queries() -> None:
    result = measure([rel(1), rel(1), rel()], [1, 1, 1], ["cat", "cat", "cow"])
    assert result.map_at_10 == pytest.approx(2 / 3)
    assert result.macro_map_at_10 == pytest.approx(1 / 2)


@given(st.lists(st.booleans(), max_size=20), st.integers(1, 30))
def test_bounds_and_monotonicity(flags: list[bool], extra: int) -> None:
    relevant = np.array(flags, bool)
    total = max(1, int(relevant.sum())) + extra - 1
    ap = average_precision(relevant, total, 10)
    assert 0 <= ap <= 1
    # Moving a relevant image one rank up never lowers the figure.
    for i in range(1, len(flags)):
        if relevant[i] and not relevant[i - 1]:
            better = relevant.copy()
            better[i - 1], better[i] = True, False
            assert average_precision(better, total, 10) >= ap - 1e-12


def test_precision_by_rank_by_hand() -> None:
    result = measure([rel(1, 3), rel(2)], [2, 1], ["cat", "dog"])
    assert result.precision_by_rank[:4] == pytest.approx((1 / 2, 1 / 2, (2 / 3 + 1 / 3) / 2, (2 / 4 + 1 / 4) / 2))
    assert result.precision_by_rank[9] == pytest.approx(result.precision_at_10)


def test_bootstrap_interval_by_hand() -> None:
    assert bootstrap_interval([0.3]) == pytest.approx((0.3, 0.3))
    assert bootstrap_interval([0.25] * 7) == pytest.approx((0.25, 0.25))
    # Two queries: a resample's mean is 0, 1/2 or 1, with chances 1/4, 1/2 and 1/4.
    assert bootstrap_interval([0, 1]) == (0, 1)
    assert bootstrap_interval([0, 1], level=0.4) == (0.5, 0.5)
    with pytest.raises(ValueError, match="there are no values"):
        bootstrap_interval([])


def test_bootstrap_interval_is_seeded_and_close_to_the_normal_one() -> None:
    values = np.random.default_rng(3).uniform(size=400)
    low, high = bootstrap_interval(values.tolist())
    assert (low, high) == bootstrap_interval(values.tolist())
    assert (low, high) != bootstrap_interval(values.tolist(), seed=1)
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.1 * error)


def test_bootstrap_interval_of_many_values_is_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).uniform(size=50).tolist()
    whole = bootstrap_interval(values)
    monkeypatch.setattr("cbir.core.evaluation.metrics._MAX_DRAWN", 130)
    assert bootstrap_interval(values) == pytest.approx(whole)


def test_calibration_error_by_hand() -> None:
    scores = np.array([0.05, 0.15, 0.15, 0.95, 1.0])
    relevant = np.array([False, True, False, True, True])
    table = reliability(scores, relevant)
    assert table.counts.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert table.mean_score[[0, 1, 9]] == pytest.approx([0.05, 0.15, 0.975])
    assert table.observed[[0, 1, 9]] == pytest.approx([0, 0.5, 1])
    assert calibration_error(scores, relevant) == pytest.approx((1 * 0.05 + 2 * 0.35 + 2 * 0.025) / 5)
    # In one bin only the means count.
    assert calibration_error(scores, relevant, bins=1) == pytest.approx(abs(scores.mean() - 0.6))


def test_calibration_error_of_sure_and_right_scores_and_of_none() -> None:
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0
    assert calibration_error(np.array([0.0, 1.0]), np.array([True, False])) == 1
    assert calibration_error(np.array([]), np.array([], bool)) == 0
