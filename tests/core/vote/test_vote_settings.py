"""The settings of the vote as a version keeps them."""

from __future__ import annotations

import json

import pytest

from cbir.core.vote import VoteSettings


def test_votes_come_back_and_old_logistic_curves_are_read() -> None:
    vote = VoteSettings({"m": 1.0}, calibration=((-1.0, 0.0), (0.25, 0.5), (2.0, 1.0)), tuned=True)
    stored = json.loads(json.dumps(vote.to_json()))
    assert VoteSettings.from_json(stored) == vote
    old = VoteSettings.from_json({**stored, "calibration": [2.0, -1.0]}).calibration
    assert old is not None
    # The middle knot, where the log-odds are 0.
    assert old[len(old) // 2] == pytest.approx((0.5, 0.5))
    assert VoteSettings.from_json({"weights": {"m": 1.0}}).calibration is None
