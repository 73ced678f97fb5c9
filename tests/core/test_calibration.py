"""The logistic curve from score to probability of relevance."""

from __future__ import annotations

import numpy as np
import pytest

from cbir.core.calibration import fit_calibration, probability_of_relevance
from cbir.core.metrics import calibration_error


def test_the_curve_that_drew_the_outcomes_is_found_again() -> None:
    rng = np.random.default_rng(0)
    fused = rng.uniform(-1, 3, 20_000).astype(np.float32)
    relevant = rng.random(20_000) < probability_of_relevance(fused, (2.5, -3.0))
    curve = fit_calibration(fused, relevant)
    assert curve == (pytest.approx(2.5, abs=0.1), pytest.approx(-3.0, abs=0.15))
    assert curve is not None
    assert calibration_error(probability_of_relevance(fused, curve), relevant) < 0.02


def test_two_scores_by_hand() -> None:
    # 2 of 8 relevant at score 0, 6 of 8 at score 1; smoothed targets are 9/10 and 1/10, so that the mean target is
    # (2 * 0.9 + 6 * 0.1) / 8 = 0.3 at score 0 and 0.7 at score 1: offset = logit(0.3), slope = 2 * logit(0.7).
    fused = np.repeat([0.0, 1.0], 8).astype(np.float32)
    relevant = np.array([1] * 2 + [0] * 6 + [1] * 6 + [0] * 2, bool)
    curve = fit_calibration(fused, relevant)
    logit = float(np.log(0.7 / 0.3))
    assert curve == (pytest.approx(2 * logit, abs=1e-4), pytest.approx(-logit, abs=1e-4))


def test_perfect_separation_stays_finite() -> None:
    curve = fit_calibration(np.array([0, 0, 1, 1], np.float32), np.array([False, False, True, True]))
    assert curve is not None
    assert np.isfinite(curve).all()


@pytest.mark.parametrize(
    ("fused", "relevant"),
    [([0.1, 0.2], [True, True]), ([0.1, 0.2], [False, False]), ([0.3, 0.3], [True, False]), ([1, 0], [False, True])],
)
def test_nothing_to_tell_apart_gives_no_curve(fused: list[float], relevant: list[bool]) -> None:
    assert fit_calibration(np.array(fused, np.float32), np.array(relevant)) is None
