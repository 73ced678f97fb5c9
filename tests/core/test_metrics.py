"""Measures: hand-computed cases and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbir.core.metrics import average_precision, cmc, measure, precision, r_average_precision, recall


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
