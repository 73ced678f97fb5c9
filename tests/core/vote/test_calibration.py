"""The curve from fused score to probability of relevance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbir.core.evaluation import calibration_error
from cbir.core.vote import Curve, fit_calibration, probability_of_relevance
from cbir.core.vote.calibration import logistic_curve


def test_the_probabilities_that_drew_the_outcomes_are_found_again() -> None:
    # Two humps of scores with a plateau between them: what a logistic curve cannot follow.
    rng = np.random.default_rng(0)
    drawn = ((-1.0, 0.0), (0.5, 0.1), (1.0, 0.4), (2.0, 0.45), (2.5, 0.97), (3.0, 1.0))
    fused = np.concatenate([rng.uniform(0, 1, 10_000), rng.uniform(2, 3, 10_000)]).astype(np.float32)
    relevant = rng.random(20_000) < probability_of_relevance(fused, drawn)
    curve = fit_calibration(fused, relevant, 3.0)
    assert curve is not None
    assert np.abs(probability_of_relevance(fused, curve) - probability_of_relevance(fused, drawn)).max() < 0.08
    assert calibration_error(probability_of_relevance(fused, curve), relevant) < 0.01


def test_two_bins_by_hand() -> None:
    # 2 of 8 relevant at score 0 and 6 of 8 at 1; after Laplace 3/10 and 7/10.
    fused = np.repeat([0.0, 1.0], 8).astype(np.float32)
    relevant = np.array([1] * 2 + [0] * 6 + [1] * 6 + [0] * 2, bool)
    curve = fit_calibration(fused, relevant, 2.0)
    assert curve == ((-1, 0), (0, pytest.approx(0.3)), (1, pytest.approx(0.7)), (2, 1))
    between = probability_of_relevance(np.array([-2, -1, -0.5, 0.25, 1.5, 2, 5], np.float32), curve)
    assert between == pytest.approx([0, 0, 0.15, 0.4, 0.85, 1, 1])


def test_bins_whose_relevance_falls_are_pooled() -> None:
    # Of 30 hits each 6, 18, 12 and 27 are relevant at scores 0.1 to 0.4: the middle ones become 30 of 60 at 0.25.
    fused = np.repeat([0.1, 0.2, 0.3, 0.4], 30).astype(np.float32)
    relevant = np.concatenate([np.arange(30) < count for count in (6, 18, 12, 27)])
    curve = fit_calibration(fused, relevant, 1.0)
    assert curve is not None
    assert np.array(curve) == pytest.approx(
        np.array([(-1, 0), (0.1, 7 / 32), (0.25, 31 / 62), (0.4, 28 / 32), (1, 1)]), abs=1e-6
    )


@given(
    st.lists(st.tuples(st.floats(-1, 3, width=16), st.booleans()), min_size=2, max_size=300),
    st.randoms(use_true_random=False),
)
def test_scores_rise_between_0_and_1_whatever_the_order_of_the_hits(hits: list[tuple[float, bool]], rng) -> None:
    def fitted() -> Curve | None:
        return fit_calibration(np.array([x for x, _ in hits], np.float32), np.array([y for _, y in hits]), 3.0)

    curve = fitted()
    rng.shuffle(hits)
    again = fitted()
    assert (curve is None) == (again is None)
    if curve is None or again is None:
        return
    assert np.array(again) == pytest.approx(np.array(curve))
    assert len(curve) <= 18
    assert (np.diff(np.array(curve), axis=0) > 0).all()
    assert (curve[0], curve[-1]) == ((-1, 0), (3, 1))


@pytest.mark.parametrize(
    ("fused", "relevant"),
    [([0.1, 0.2], [True, True]), ([0.1, 0.2], [False, False]), ([0.3, 0.3], [True, False]), ([1, 0], [False, True])],
)
def test_nothing_to_tell_apart_gives_no_curve(fused: list[float], relevant: list[bool]) -> None:
    assert fit_calibration(np.array(fused, np.float32), np.array(relevant), 2.0) is None


def test_a_logistic_curve_is_kept_to_within_a_thousandth() -> None:
    fused = np.linspace(-1, 5, 1001)
    want = 1 / (1 + np.exp(-(1.7 * fused - 4.2)))
    np.testing.assert_allclose(
        probability_of_relevance(fused.astype(np.float32), logistic_curve(1.7, -4.2)), want, atol=1e-3
    )
