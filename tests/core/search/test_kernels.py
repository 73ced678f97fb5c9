"""Kernels of search: proven bounds of half precision, the choice by measured times, and the guard at run time."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from drawn_vectors import WEIGHTS, ask, best, draw, exact, hits
from hypothesis import given, settings
from hypothesis import strategies as st
from precision import UNITS

import cbir.core.search.kernels.choice as choice
import cbir.core.search.kernels.measuring as measuring
from cbir.core.metric import normalise
from cbir.core.search.candidate_generation import CandidateGenerator
from cbir.core.search.candidates import Wanted
from cbir.core.search.kernels.half_product import HalfProduct
from cbir.core.search.kernels.kept_choices import Kept
from cbir.core.search.kernels.prepared import Kernels
from cbir.core.search.kernels.timing import BATCH, Contender, Times, race
from cbir.core.search.kernels.trials import Trials, trial_queries
from cbir.core.search.kernels.work import Work
from cbir.core.search.matrices.cpu_matrix import CpuMatrix, MappedMatrix
from cbir.core.search.matrices.gallery_matrix import load_matrix

#: Seconds a row: a product in half precision that is slow, as without instructions for it, and one that is fast.
SLOW = Times({"product": 1e-7, "scan": 1e-9, "bf16": 1e-6}, {"product": 5e-8, "scan": 1e-9, "bf16": 1e-6}, (2e-7, 2e-7))
FAST = Times({"product": 1e-7, "scan": 1e-9, "bf16": 1e-8}, {"product": 5e-8, "scan": 4e-9, "bf16": 1e-9}, (2e-7, 2e-7))


def matrix_of(parts: list[np.ndarray], halves: bool = False) -> CpuMatrix:
    matrix = load_matrix(parts, "cpu", 0 if halves else 2**30)
    assert isinstance(matrix, CpuMatrix)
    return matrix


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known from earlier, nothing is kept for later, and no gallery is too small."""
    monkeypatch.setenv("CBIR_CACHE", str(tmp_path))
    monkeypatch.setattr("cbir.core.search.kernels.kept_choices._measured", {})
    monkeypatch.setattr("cbir.core.search.candidate_generation.MIN_MEASURED", 1)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Times], None]:
    """Say what would be measured."""
    return lambda times: monkeypatch.setattr(choice, "measure", lambda *given: Kept(times, False, {}))


@pytest.mark.parametrize("name", ["bf16", "f16"])
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 33), st.sampled_from([(1,), (3, 5), (64, 200, 8)]))
def test_no_estimate_is_further_off_than_proven(name: str, seed: int, count: int, dims: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    # Halves between two numbers of bfloat16 in the first rows, where rounding takes most.
    parts = [normalise(rng.normal(size=(300, d)) ** 3).astype(np.float16) for d in dims]
    for part in parts:
        part[:40] = normalise(rng.choice([-1.0, 1.0], part[:40].shape) * (1 + 2**-8)).astype(np.float16)
    weights = rng.dirichlet(np.ones(len(dims)))
    queries = np.hstack([w * normalise(rng.normal(size=(count, d))) for w, d in zip(weights, dims, strict=True)])
    queries = queries.astype(np.float32)
    half = HalfProduct(matrix_of(parts, halves=True), name)
    rows, estimates = half.search(queries, 300)
    scores = queries.astype(np.float64) @ np.hstack([p.astype(np.float64) for p in parts]).T
    off = np.abs(np.take_along_axis(scores, rows, axis=1) - estimates).max(axis=1)
    bound = half.error(queries)
    assert (off <= bound).all()
    # And it is a bound that is of use: less than three roundings of vectors of length 1.
    assert (bound < 3.2 * UNITS[name] + 2**-24 * 4 * sum(dims)).all()


def test_float16_is_only_for_rows_that_are_kept_so() -> None:
    with pytest.raises(ValueError, match="not kept in float16"):
        HalfProduct(matrix_of(draw("random", 50)), "f16")
    found = CandidateGenerator(matrix_of(draw("random", 2000)), WEIGHTS, "f16")
    assert found.kernels.one.name == "product"


def test_the_time_of_a_query_by_hand() -> None:
    times = Times({"product": 33.0, "scan": 5.0}, {"product": 2.0, "scan": 6.0}, (1.0, 1.0))
    # 31 = s (1 - 1/32), so the batch shares 32, and each query adds 1.
    assert times.of("product", 1) == pytest.approx(33)
    assert times.of("product", 4) == pytest.approx(1 + 32 / 4)
    assert times.of("product", BATCH) == pytest.approx(2)
    assert (times.of("scan", 1), times.of("scan", 2)) == (5, 6)
    assert times.of("bf16", 1) == np.inf


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[tuple[str, int, int]] = []

    def __call__(self) -> float:
        return self.now

    def contender(self, name: str, one: float, batch: float, most: int = 10**9) -> Contender:
        def prepare(size: int) -> Callable[[np.ndarray], None]:
            def search(queries: np.ndarray) -> None:
                self.runs.append((name, size, len(queries)))
                self.now += size * (one if len(queries) == 1 else batch * len(queries))

            return search

        return Contender(prepare, most)


def test_what_is_hopeless_is_not_measured_on_more_rows() -> None:
    clock, queries = Clock(), np.zeros((BATCH, 2), np.float32)
    contenders = {
        "product": clock.contender("product", 1e-6, 1e-6),
        "bf16": clock.contender("bf16", 2e-6, 4e-6),
        "f16": Contender(lambda size: None, 10**9),
        "scan": clock.contender("scan", 1e-7, 1e-6, most=100),
    }
    one, batch = race(contenders, queries, (100, 1000, 10_000), clock=clock)
    assert one == pytest.approx({"product": 1e-6, "bf16": 2e-6, "scan": 1e-7})
    assert batch == pytest.approx({"product": 1e-6, "bf16": 4e-6, "scan": 1e-6})
    sizes = {
        (name, count): max(s for n, s, c in clock.runs if (n, c) == (name, count)) for name, _, count in clock.runs
    }
    assert sizes == {
        # Ten times slower than a scan for one query, the same in a batch.
        ("product", 1): 100, ("product", BATCH): 10_000, ("bf16", 1): 100, ("bf16", BATCH): 100,
        ("scan", 1): 100, ("scan", BATCH): 100,
    }  # fmt: skip


def test_what_all_else_falls_back_on_is_measured_however_slow_it_is() -> None:
    clock, queries = Clock(), np.zeros((BATCH, 2), np.float32)
    slow = dataclasses.replace(clock.contender("product", 1e-5, 1e-5), least=1000)
    race({"product": slow, "scan": clock.contender("scan", 1e-7, 1e-7)}, queries, (100, 1000, 10_000), clock=clock)
    assert {size for name, size, _ in clock.runs if name == "product"} == {100, 1000}
    assert {size for name, size, _ in clock.runs if name == "scan"} == {100, 1000, 10_000}


def test_no_more_is_measured_once_all_is_known_to_be_too_slow() -> None:
    clock, queries = Clock(), np.zeros((BATCH, 2), np.float32)
    contenders = {"product": clock.contender("product", 1e-6, 1e-6), "scan": clock.contender("scan", 4e-7, 4e-7)}
    for limit, sizes in ((3e-7, {100}), (5e-7, {100, 1000})):
        clock.runs.clear()
        race(
            contenders, queries, (100, 1000), clock=clock, stop=lambda one, most=limit: min(one.values()) > most
        )  # fmt: skip
        assert {size for _, size, _ in clock.runs} == sizes


def test_measuring_ends_at_its_deadline() -> None:
    clock, queries = Clock(), np.zeros((BATCH, 2), np.float32)
    contenders = {name: clock.contender(name, 1e-3, 1e-4) for name in ("product", "scan")}
    one, batch = race(contenders, queries, (100, 1000, 10_000), deadline=0.5, clock=clock)
    # The first is measured in any case; the figure of the second is not worth the time that is not there.
    assert set(one) == set(batch) == {"product"}
    assert {size for _, size, _ in clock.runs} == {100}


def test_times_are_measured_on_the_rows_of_the_gallery(caplog: pytest.LogCaptureFixture) -> None:
    parts = [np.vstack([part] * 3) for part in draw("clustered")]
    matrix = matrix_of(parts, halves=True)
    kept = measuring.measure(matrix, WEIGHTS, measuring.Scans(matrix))
    assert "product" in kept.times.one
    assert set(kept.times.one) == set(kept.times.batch) <= {"product", "scan", "bf16", "f16"}
    assert all(0 < seconds < 1e-3 for seconds in (*kept.times.one.values(), *kept.times.batch.values()))


def test_sums_in_too_few_bits_are_seen(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    search = HalfProduct.search

    def sloppy(self: HalfProduct, *given) -> tuple[np.ndarray, np.ndarray]:
        rows, estimates = search(self, *given)
        return rows, estimates * np.float32(1.02)

    matrix = matrix_of(draw("clustered"))
    assert "bf16" in measuring.measure(matrix, WEIGHTS, measuring.Scans(matrix), 60).times.one
    monkeypatch.setattr(HalfProduct, "search", sloppy)
    assert "bf16" not in measuring.measure(matrix, WEIGHTS, measuring.Scans(matrix), 60).times.one
    assert "products in bf16 are less exact" in caplog.text


def test_trial_queries_do_not_find_themselves() -> None:
    matrix = matrix_of(draw("clustered", 2000))
    queries, own = trial_queries(matrix, WEIGHTS)
    assert (own[:8] >= 0).all()
    assert (own[8:] == -1).all()
    lengths = [np.linalg.norm(queries[:, a:b], axis=1) for a, b in itertools.pairwise(matrix.stops)]
    np.testing.assert_allclose(np.stack(lengths, axis=1), np.tile(WEIGHTS, (16, 1)), rtol=1e-5)
    trials = Trials.of(matrix, WEIGHTS, 500)
    assert trials.rows.shape == trials.products.shape == (16, 500)
    assert not (trials.rows == own[:, None]).any()
    assert (np.diff(trials.products, axis=1) <= 0).all()
    # The tenth hit scores products[:, 9]: a bound of 0 leaves ten, one of 3 all.
    assert trials.needed_with(np.zeros(16, np.float32)).tolist() == [10] * 16
    assert trials.needed_with(np.full(16, 3, np.float32)).tolist() == [500] * 16


@pytest.mark.parametrize(
    ("kind", "times", "one", "batch"),
    [
        ("clustered", SLOW, "scan", "scan"),
        ("clustered", FAST, "scan", "bf16"),
        ("random", dataclasses.replace(SLOW, rescored=(1e-6, 1e-6)), "product", "product"),
        ("random", FAST, "bf16", "bf16"),
    ],
)
def test_the_choice_follows_machine_and_gallery(timed, kind: str, times: Times, one: str, batch: str) -> None:
    timed(times)
    if kind == "random":
        # 768 independent components, where everything is as far away as anything: a scan proves nothing.
        parts, weights = [normalise(np.random.default_rng(0).normal(size=(3000, 768))).astype(np.float16)], np.ones(1)
    else:
        parts, weights = draw("clustered"), WEIGHTS
    search = CandidateGenerator(matrix_of(parts), weights.astype(np.float32))
    assert (search.kernels.one.name, search.kernels.batch.name) == (one, batch)
    for count in (1, 5, BATCH + 1):
        queries, shares = ask(parts, count), np.tile(weights, (count, 1)).astype(np.float32)
        if kind == "random":
            queries = normalise(np.random.default_rng(1).normal(size=(count, 768))).astype(np.float32)
            expected = queries @ parts[0].astype(np.float32).T
        else:
            expected = exact(parts, queries, shares)
        assert hits(search, queries, shares) == [best(row) for row in expected]


def test_the_cost_of_a_scan_by_hand() -> None:
    # A row of the scan takes 1, listing one 2, scoring one 8, whatever the batch; 1000 rows, codes twice as long.
    times = Times({"product": 50.0, "scan": 1.0}, {"product": 50.0, "scan": 1.0}, (10.0, 10.0), 2.0)
    needed = np.array([10, 100, 200, 700])
    # 512 listed, 256 scored: for 700 the list is too short, which takes another scan, a list four times as long, and
    # 1024 scores; no other has a second round.
    one, batch = choice._scan_costs(times, 1000, needed, 5000, 2, 512)
    lists = 1.25 * 2 * 1000 + 2 * 512 * (1 + 4 * 0.25)
    assert one == lists + 8 * ((3 * 256 + 1024) / 4 + 0.25 * 256)
    assert batch == lists + 8 * ((3 * 256 + 1024) / 4 + 0.25 * 256 / BATCH)
    # 256 listed, 128 scored: 200 is in the list, in a second round.
    one, _ = choice._scan_costs(times, 1000, needed, 5000, 1, 256)
    assert one == 1.25 * 1000 + 2 * 256 * 2 + 8 * ((128 + 128 + 200 + 700) / 4 + 0.5 * 256)
    # What needs more than the product is worth ends there.
    one, _ = choice._scan_costs(times, 1000, needed, 600, 1, 256)
    assert one == 1.25 * 1000 + 0.25 * 50_000 + 2 * 256 * 2 + 8 * ((128 + 128 + 200 + 600) / 4 + 0.5 * 256)
    assert choice._depths(needed, 5000) == [256, 512, 1024, 2048]
    assert choice._depths(needed, 1000) == [256, 512, 1024]


@pytest.mark.parametrize(("milliseconds", "threads"), [(0.9, [1]), (5.0, [1, 2])])
def test_more_threads_are_measured_where_they_could_save_a_millisecond(
    monkeypatch: pytest.MonkeyPatch, milliseconds: float, threads: list[int]
) -> None:
    before, asked = torch.get_num_threads(), []

    def measure(*_) -> Kept:
        asked.append(torch.get_num_threads())
        # One query is a product with 3000 rows, as everything else takes far longer.
        each = milliseconds / 3e6
        prices = {"product": each, "scan": 1.0}
        return Kept(Times(prices, prices, (1e-9, 1e-9)), False, {}, False)

    monkeypatch.setattr(choice, "measure", measure)
    monkeypatch.setattr("cbir.core.search.kernels.kept_choices._measured", {})
    matrix = matrix_of(draw("clustered", 3000))
    torch.set_num_threads(2)
    try:
        assert choice.choose_kernels(matrix, WEIGHTS).alone is (len(threads) == 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert asked == threads


def test_a_copy_that_memory_has_no_room_for_is_not_chosen(timed, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(FAST)
    monkeypatch.setattr(choice, "available_bytes", lambda: 10_000)
    search = CandidateGenerator(matrix_of(draw("clustered")), WEIGHTS)
    assert "bf16" not in (search.kernels.one.name, search.kernels.batch.name)


def test_rows_of_float16_are_converted_as_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = draw("clustered")
    found = []
    for by_tiles in (False, True):
        monkeypatch.setattr(choice, "measure", lambda *_, way=by_tiles: Kept(SLOW, way, {}, False))
        monkeypatch.setattr("cbir.core.search.kernels.kept_choices._measured", {})
        matrix = matrix_of(parts, halves=True)
        CandidateGenerator(matrix, WEIGHTS)
        assert isinstance(matrix, MappedMatrix)
        assert matrix.one_by_tiles is by_tiles
        found.append(matrix.best(ask(parts, 1), 30))
    assert found[0][0].tolist() == found[1][0].tolist()
    np.testing.assert_allclose(found[0][1], found[1][1], atol=UNITS["f32"] * 64)


def test_work_by_hand() -> None:
    work = Work(SLOW, "scan", 1000)
    # A product costs 1e-4 s; a scan 1e-6, and each row that is scored 2e-7.
    for _ in range(200):
        work.add(1, lists=1, scored=300, products=0, seconds=6.1e-5)
        assert work.allows()
    assert work._average == pytest.approx((1e-6 + 6e-5) / 1e-4, abs=0.01)
    for _ in range(100):
        # Scored 900 rows, and left to the product after that.
        work.add(1, lists=1, scored=900, products=1, seconds=2.8e-4)
        if not work.allows():
            break
    else:
        pytest.fail("it is never set aside")
    # The product takes what it was said to, so it stays.
    for _ in range(16):
        work.add_instead(1, seconds=1e-4)
    assert [work.allows() for _ in range(32)].index(True) == 30
    # The next time it stays aside for twice as long, and for as long as the first time once it has done well.
    for expected in (62, 126):
        while work.allows():
            work.add(1, lists=1, scored=900, products=1, seconds=2.8e-4)
        assert [work.allows() for _ in range(200)].index(True) == expected
    for _ in range(200):
        work.add(1, lists=1, scored=100, products=0, seconds=2.1e-5)
    while work.allows():
        work.add(1, lists=1, scored=900, products=1, seconds=2.8e-4)
    assert [work.allows() for _ in range(200)].index(True) == 30


def test_a_kernel_comes_back_where_the_product_is_slower_than_it_was_said_to_be() -> None:
    work = Work(SLOW, "scan", 1000)
    while work.allows():
        # By the prices it costs 1.21 products, but takes a fifth of what the product takes in truth.
        work.add(1, lists=1, scored=600, products=0, seconds=1e-4)
    for number in range(16):
        assert not work.allows(), number
        # One that was interrupted is no reason.
        work.add_instead(1, seconds=5e-4 if number else 1.0)
    assert work.allows()
    for _ in range(500):
        work.add(1, lists=1, scored=600, products=0, seconds=1e-4)
        assert work.allows()
    # It is set aside again where it comes to cost more than even this product: 1.0 is where it was set aside.
    assert work._limit == pytest.approx(5.0, rel=0.05)
    for _ in range(100):
        work.add(1, lists=1, scored=3000, products=0, seconds=6e-4)
    assert not work.allows()


def test_a_scan_that_proves_nothing_is_set_aside_at_run_time() -> None:
    # As if trial queries had been answered well, unlike all that come.
    part = normalise(np.random.default_rng(0).normal(size=(4000, 256))).astype(np.float16)
    search = CandidateGenerator(matrix_of([part]), np.ones(1, np.float32), "scan")
    work = Work(SLOW, "scan", 4000)
    scan = dataclasses.replace(search.kernels.one, most=2000, work=work)
    search.kernels = Kernels(search.kernels.product, scan, scan)
    queries = normalise(np.random.default_rng(1).normal(size=(60, 256))).astype(np.float32)
    used = []
    for query in queries[:, None]:
        used.append(not work._aside)
        assert hits(search, query, np.ones((1, 1), np.float32)) == [best((query @ part.astype(np.float32).T)[0])]
    assert used[0]
    assert not all(used)


def test_wanted_by_hand() -> None:
    allowed = np.array([True, False, True, True])
    wanted = Wanted.of(4, [3, 1], [4, 2], [(0, 0, 1), ()], allowed)
    assert wanted.available == 3
    assert wanted.lost == [1, 0]
    assert wanted.certain.tolist() == [2, 1]
    assert wanted.keep.tolist() == [3, 2]
    assert Wanted.of(4, [9], [9], [(1,)], None).certain.tolist() == [3]
