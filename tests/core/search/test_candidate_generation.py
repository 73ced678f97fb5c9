"""The nearest images by scan and by product against brute force: weights, filters, exclusions, ties, odd rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from drawn_vectors import DIMS, WEIGHTS, N, ask, best, draw, exact, hits
from hypothesis import given, settings
from hypothesis import strategies as st
from precision import f16, f32

import cbir.core.search.candidate_generation as generation
from cbir.core.metric import normalise
from cbir.core.search.candidate_generation import CandidateGenerator
from cbir.core.search.kernels.prepared import Kernels
from cbir.core.search.matrices.cpu_matrix import HostMatrix, MappedMatrix
from cbir.core.search.matrices.gallery_matrix import GalleryMatrix, load_matrix
from cbir.core.search.matrices.gpu_matrix import DeviceMatrix
from cbir.core.search.product_quantisation_scan import QuantisedScan, balanced_groups
from cbir.core.vote import top_places
from cbir.core.vote.top_k import ranks_of


def on_device(parts: list[np.ndarray]) -> DeviceMatrix:
    return DeviceMatrix(parts, tuple(np.cumsum((0, *(p.shape[1] for p in parts))).tolist()), "cpu")


def in_memory(parts: list[np.ndarray]) -> GalleryMatrix:
    return load_matrix(parts, "cpu")


@pytest.fixture(scope="module", params=["clustered", "random"])
def parts(request: pytest.FixtureRequest) -> list[np.ndarray]:
    return draw(request.param)


@pytest.fixture(
    scope="module",
    params=[
        "scan", "scan of halves", "product", "product of halves", "bf16", "bf16 of halves", "f16 of halves", "device",
    ],
)  # fmt: skip
def search(request: pytest.FixtureRequest, parts: list[np.ndarray]) -> CandidateGenerator:
    if request.param == "device":
        # What runs on a GPU, on the CPU: products of half precision.
        return CandidateGenerator(on_device(parts), WEIGHTS)
    matrix = load_matrix(parts, "cpu", 0 if "halves" in request.param else 2**30)
    found = CandidateGenerator(matrix, WEIGHTS, request.param.split()[0])
    assert found.kernels.one.name == found.kernels.batch.name == request.param.split()[0]
    return found


@pytest.mark.parametrize("batch", [1, 33])
def test_hits_are_those_of_brute_force_for_any_weights(
    parts: list[np.ndarray], search: CandidateGenerator, batch: int
) -> None:
    queries = ask(parts, batch)
    weights = np.random.default_rng(2).dirichlet(np.ones(3), batch).astype(np.float32)
    weights[::4] = (0, 1, 0)
    weights[1::4] = WEIGHTS
    scores = exact(parts, queries, weights)
    assert hits(search, queries, weights) == [best(row) for row in scores]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9])
def test_filters(parts: list[np.ndarray], search: CandidateGenerator, share: float) -> None:
    allowed = np.random.default_rng(3).random(N) < share
    assert allowed.any() == (share > 0)
    for query in ask(parts, 3)[:, None]:
        scores = np.where(allowed, exact(parts, query, WEIGHTS[None])[0], -np.inf)
        assert hits(search, query, WEIGHTS[None], allowed=allowed) == [best(scores)]


def test_excluded_rows_are_no_candidates(parts: list[np.ndarray], search: CandidateGenerator) -> None:
    queries = ask(parts, 6)
    weights = np.tile(WEIGHTS, (6, 1))
    scores = exact(parts, queries, weights)
    excluded = [
        tuple(np.argsort(-row)[:count].tolist()) for count, row in zip((0, 1, 2, 7, 40, 1), scores, strict=True)
    ]
    excluded[5] = (*excluded[5], *excluded[5])  # named twice
    for row, out in zip(scores, excluded, strict=True):
        row[list(out)] = -np.inf
    assert hits(search, queries, weights, excluded=excluded) == [best(row) for row in scores]


@pytest.mark.parametrize("limit", [1, 300, 2 * N])
def test_any_number_of_hits(parts: list[np.ndarray], search: CandidateGenerator, limit: int) -> None:
    queries = ask(parts, 2)
    weights = np.tile(WEIGHTS, (2, 1))
    found = hits(search, queries, weights, limit)
    for rows, scores in zip(found, exact(parts, queries, weights), strict=True):
        assert len(rows) == min(limit, N)
        # Of so many, some are equal but for the rounding of sums.
        np.testing.assert_allclose(scores[rows], np.sort(scores)[::-1][: len(rows)], atol=f32(32))


def test_the_bound_holds_for_what_is_no_candidate(parts: list[np.ndarray], search: CandidateGenerator) -> None:
    queries = ask(parts, 8)
    weights = np.tile(WEIGHTS, (8, 1))
    found = search.find(queries, weights, [10] * 8, [32] * 8, [()] * 8)
    for rows, bound, scores in zip(found.rows, found.score_bound, exact(parts, queries, weights), strict=True):
        # The bound is a sum in float32.
        assert np.delete(scores, rows[rows >= 0]).max() <= bound + 1e-6


@pytest.mark.parametrize("kernel", ["scan", "product", "bf16"])
def test_equal_images_are_ranked_in_the_order_of_rows(kernel: str) -> None:
    # More copies than any list is deep at first: nothing but the order of rows tells them apart.
    parts = draw("clustered")
    copies = np.random.default_rng(4).choice(N, 700, replace=False)
    for part in parts:
        part[copies] = part[copies[0]]
    query = np.hstack([part[copies[:1]].astype(np.float32) for part in parts])
    search = CandidateGenerator(in_memory(parts), WEIGHTS, kernel)
    assert hits(search, query, WEIGHTS[None]) == [np.sort(copies)[:10].tolist()]


def test_rows_unlike_all_that_taught_the_codes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # A few images agree with a cluster in the components that count there, and with each other in those that mean
    # nothing elsewhere: no centroid is near them, and the cluster's images seem to be the nearest.
    rng = np.random.default_rng(0)
    falling = np.exp(-6 * np.arange(128) / 128)
    centres = rng.normal(size=(200, 128))
    x = normalise((centres[rng.integers(0, 200, 20_000)] + 0.3 * rng.normal(size=(20_000, 128))) * falling)
    odd = rng.choice(20_000, 20, replace=False)
    weak = np.zeros((20, 128))
    weak[:, 100:] = rng.normal(size=28)
    strong = normalise((centres[:20] + 0.3 * rng.normal(size=(20, 128))) * falling)
    x[odd] = np.sqrt(0.3) * strong + np.sqrt(0.7) * normalise(weak)
    part = normalise(x).astype(np.float16)
    search = CandidateGenerator(in_memory([part]), np.ones(1, np.float32), "scan")
    queries, weights = part[odd].astype(np.float32), np.ones((20, 1), np.float32)
    expected = [best(row) for row in exact([part], queries, weights)]
    assert hits(search, queries, weights) == expected
    monkeypatch.setattr(generation, "add_poorly_coded_rows", lambda matrix, scan, usual, found, *others: found)
    assert hits(search, queries, weights) != expected, "the scan alone finds them as well"


def test_a_scan_goes_deeper_until_it_has_proof_and_ends_with_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = draw("random")
    search = CandidateGenerator(in_memory(parts), WEIGHTS, "scan")
    depths: list[int] = []
    products: list[int] = []
    scan, best_rows = QuantisedScan.search, HostMatrix.best

    def watch_scan(self: QuantisedScan, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        depths.append(count)
        return scan(self, queries, count)

    def watch_product(self: HostMatrix, queries: np.ndarray, count: int, *others) -> tuple[np.ndarray, np.ndarray]:
        products.append(len(queries))
        return best_rows(self, queries, count, *others)

    monkeypatch.setattr(QuantisedScan, "search", watch_scan)
    monkeypatch.setattr(HostMatrix, "best", watch_product)
    first = dataclasses.replace(search.kernels.one, depth=64)
    search.kernels = Kernels(search.kernels.product, first, first)
    queries, weights = ask(parts, 33), np.tile(WEIGHTS, (33, 1))
    assert hits(search, queries, weights) == [best(row) for row in exact(parts, queries, weights)]
    assert depths == [64, 256]
    assert len(products) == 1
    assert 0 < products[0] <= 33


@settings(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_gallery_changes_nothing(random) -> None:
    parts = draw("clustered", 2000)
    order = np.array(random.sample(range(2000), 2000))
    queries, weights = ask(parts, 4), np.tile(WEIGHTS, (4, 1))
    search = CandidateGenerator(in_memory([part[order] for part in parts]), WEIGHTS, "scan")
    found = [order[rows].tolist() for rows in hits(search, queries, weights)]
    assert found == hits(CandidateGenerator(in_memory(parts), WEIGHTS, "scan"), queries, weights)


def test_groups_share_the_variance_by_hand() -> None:
    loads = np.array([8.0, 1.0, 1.0, 4.0, 1.0, 1.0])
    assert balanced_groups(loads, 3, 4) == [[0], [3], [1, 2, 4, 5]]
    assert balanced_groups(loads, 3, 2) == [[0, 5], [3, 4], [1, 2]]


def test_mapped_files_are_searched_where_they_lie(tmp_path: Path) -> None:
    parts = draw("clustered", 1000)
    for m, part in enumerate(parts):
        np.save(tmp_path / f"{m}.npy", part)
    mapped = [np.load(tmp_path / f"{m}.npy", mmap_mode="r") for m in range(3)]
    matrix: GalleryMatrix = load_matrix(mapped, "cpu", float32_bytes=0)
    assert isinstance(matrix, MappedMatrix)
    assert np.shares_memory(matrix._arrays[0], mapped[0])
    np.testing.assert_array_equal(
        matrix.vectors_of(np.array([5, 999])), np.hstack([p[[5, 999]].astype(np.float32) for p in parts])
    )


@pytest.mark.parametrize("make", [in_memory, lambda p: load_matrix(p, "cpu", 0), on_device])
def test_matrices_agree(make) -> None:
    parts = draw("clustered", 1500)
    matrix, queries = make(parts), ask(parts, 3)
    rows = np.random.default_rng(0).integers(0, 1500, (3, 700))
    stops = np.cumsum((0, *DIMS))
    expected = np.stack([
        [p[own].astype(np.float64) @ query[a:b] for p, a, b in zip(parts, stops, stops[1:], strict=False)]
        for own, query in zip(rows, queries, strict=True)
    ])  # fmt: skip
    np.testing.assert_allclose(matrix.similarities(rows, queries), expected, atol=f32(256))
    found, products = matrix.best(queries[:, stops[1] : stops[2]], 20, member=1)
    scores = queries[:, stops[1] : stops[2]] @ parts[1].astype(np.float32).T
    np.testing.assert_allclose(products, -np.sort(-scores, axis=1)[:, :20], atol=f16(4))
    np.testing.assert_allclose(np.take_along_axis(scores, found, axis=1), products, atol=f16(4))


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 7, 130])
def test_equal_images_score_the_same_wherever_they_stand(columns: int) -> None:
    parts = [np.repeat(part, 130, axis=0) for part in draw("clustered", 1)]
    found = in_memory(parts).similarities(np.arange(columns)[None], ask(parts, 1))
    assert (found == found[:, :, :1]).all()


def test_order_by_hand() -> None:
    scores = np.array([[0.5, -0.0, 0.0, -2.0, 0.5, 9.0, -1.0]], np.float32)
    rows = np.array([[7, 5, 4, 1, 3, -1, 2]])
    assert top_places(scores, rows, np.array([7])).tolist() == [[4, 0, 2, 1, 6, 3, -1]]
    assert top_places(scores, rows, np.array([3])).tolist() == [[4, 0, 2]]
    assert ranks_of(scores[:, None], rows)[0, :, 0].tolist() == [2, 4, 3, 6, 1, 0, 5]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_order_is_that_of_sorting(columns: int, count: int, seed: int) -> None:
    # By insertion or by sorting, whatever is faster for so many.
    rng = np.random.default_rng(seed)
    rows = rng.permuted(np.tile(np.arange(columns), (3, 1)), axis=1)
    rows[rng.random(rows.shape) < 0.2] = -1
    scores = rng.integers(-3, 4, rows.shape).astype(np.float32)
    places = top_places(scores, rows, np.array([count, 0, columns]))
    everything = ranks_of(scores[:, None], rows)
    some = ranks_of(scores[:, None], rows, places[:, :7])
    for i, wanted in enumerate((count, 0, columns)):
        there = np.flatnonzero(rows[i] >= 0)
        order = there[np.lexsort((rows[i][there], -scores[i][there]))]
        assert places[i][places[i] >= 0].tolist() == order[:wanted].tolist()
        assert everything[i, order, 0].tolist() == list(range(1, len(order) + 1))
        assert some[i, :, 0].tolist() == [rank + 1 if place >= 0 else 0 for rank, place in enumerate(places[i, :7])]
