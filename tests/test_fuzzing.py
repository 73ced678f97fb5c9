"""A short campaign of fuzzing; `make fuzz` runs the long one."""

from __future__ import annotations

import random

import pytest
from fuzzing import SHARES, TARGETS, campaign, changed, images, kept

#: Together so many that it takes some seconds.
INPUTS = 4000


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs_are_answered_or_refused_by_name(name: str) -> None:
    outcomes = campaign(name, int(SHARES[name] * INPUTS), seed=20261129)
    # Some inputs are still good after the changes, and some are refused: neither kind alone would try much.
    assert len(outcomes) > 1
    assert name == "header" or any("_" in word for word in outcomes), outcomes


def test_inputs_depend_on_nothing_but_their_number() -> None:
    seeds = images()
    assert changed(seeds[0], seeds, random.Random(5)) == changed(seeds[0], seeds, random.Random(5))
    assert len({changed(seeds[0], seeds, random.Random(i)) for i in range(50)}) > 40


def test_kept_inputs_are_read() -> None:
    assert any(b"[ensemble]" in data for data in kept("ensembles"))
    assert sum(SHARES.values()) == pytest.approx(1)
    assert SHARES.keys() == TARGETS.keys()
