"""What is timed while others have the core is known to be."""

from __future__ import annotations

import pytest

from cbir.core.machine import Waiting, waiting


def test_a_tenth_of_the_time_without_a_core_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waited = [100.0], {"1": 5.0}
    monkeypatch.setattr(waiting, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(waiting, "waited_seconds", lambda: dict(waited))
    begun = Waiting()
    clock[0] = 110.0
    waited |= {"1": 5.4, "2": 0.5}
    assert not begun.is_much()
    waited["2"] = 0.7
    assert begun.is_much()


def test_where_waiting_is_not_told_the_cores_that_were_lost_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lost = [100.0], [7]
    monkeypatch.setattr(waiting, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(waiting, "waited_seconds", dict)
    monkeypatch.setattr(waiting, "_times_set_aside", lambda: lost[0])
    begun = Waiting()
    clock[0], lost[0] = 102.0, 7 + 120
    assert not begun.is_much()
    lost[0] = 7 + 400
    assert begun.is_much()
