"""What parts allow, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cbir.server.bench.figures import bounds


def test_stages_in_turn_and_an_empty_call() -> None:
    # 3.33, 10 and 1.67 ms make 15.
    assert bounds.in_turn((300.0, 100.0, 600.0)) == pytest.approx(1000 / 15)
    # An empty call takes 4 ms of one of two cores: 2 ms of both.
    call = {"server_cpu_ms_each": 3.0, "generator_cpu_ms_each": 1.0}
    assert bounds.with_an_empty_call(125.0, call, 2) == pytest.approx(1000 / 10)


def test_a_flood_leaves_the_engine_a_part_of_its_cores() -> None:
    calm = {"event loop": 0.1, "gRPC": 0.1, "engine and models": 1.6, "generator": 0.1}
    flood = {"cores": {"at capacity": calm, "flooded": {**calm, "engine and models": 1.2}}}
    assert bounds.cores_left(flood) == pytest.approx(0.75)
    assert bounds.cores_left({"cores": {"at capacity": {}, "flooded": {}}}) is None


def test_the_simulated_queue() -> None:
    def ratio(one: float, batch: float, load: float, most: int = 32) -> float:
        return bounds.queue_ratio(one, batch, most, load, np.random.default_rng(0))

    # Nobody waits where there is next to nothing to do.
    assert ratio(0.01, 0.01, 0.001) == pytest.approx(1, abs=0.1)
    # One after the other at 0.7 it is M/D/1, whose p99 of waiting is about 6.6 services (Erlang).
    assert ratio(0.01, 0.01, 0.7, most=1) == pytest.approx(7.6, abs=0.8)
    # Batches answer all of theirs at the end, so that a query waits for those behind it too.
    assert 7 < ratio(0.01, 0.01, 0.7) < 13
    # Where a batch takes hardly longer than one query, hardly anybody waits for more than the batch before.
    assert ratio(0.01, 0.01 / 32, 0.7) <= 2.01
