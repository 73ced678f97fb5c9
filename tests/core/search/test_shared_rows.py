"""Rows that are kept in half precision or as codes, searched by ranges on several threads: as on one, as by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cbir.core.machine import jit
from cbir.core.metric import normalise
from cbir.core.search import product_quantisation_scan
from cbir.core.search.kernels import measuring
from cbir.core.search.matrices import cpu_matrix
from cbir.core.search.matrices.cpu_matrix import MappedMatrix
from cbir.core.search.matrices.half_bits import shifted, widened
from cbir.core.search.matrices.half_products import add_product, inner_products_of
from cbir.core.search.product_quantisation_scan import QuantisedScan
from cbir.core.vector_index import SegmentedVectors

STOPS = (0, 24, 40)
WEIGHTS = np.array([0.6, 0.4], np.float32)


def halves(count: int = 3000) -> list[np.ndarray]:
    """Noisy copies of fifty centres, two members."""
    random = np.random.default_rng(0)
    kind = random.integers(0, 50, count)
    return [
        normalise(
            random.normal(size=(50, b - a))[kind] + 0.4 * random.normal(size=(count, b - a))
        ).astype(np.float16)
        for a, b in ((0, 24), (24, 40))
    ]  # fmt: skip


@jit
def _by_instruction(bits: np.ndarray, values: np.ndarray) -> None:
    for i in range(len(bits)):
        values[i] = widened(bits[i])


@jit
def _by_shifting(bits: np.ndarray, values: np.ndarray) -> None:
    for i in range(len(bits)):
        values[i] = shifted(bits[i])


@pytest.mark.parametrize("convert", [_by_instruction, _by_shifting])
def test_every_float16_becomes_the_same_float32(convert) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    expected = bits.view(np.float16).astype(np.float32)
    finite = np.isfinite(expected)
    values = np.empty(len(bits), np.float32)
    convert(bits, values)
    assert np.array_equal(values[finite], expected[finite])
    # The sign of zero, too.
    assert np.array_equal(np.signbit(values[finite]), np.signbit(expected[finite]))


def test_products_of_half_precision_by_hand() -> None:
    rows = np.array([[1, 2], [0.5, -1], [0, 4]], np.float16)
    scores = np.array([10, 10, 10], np.float32)
    add_product(rows, np.array([2, 0.5], np.float32), scores)
    assert scores.tolist() == [13, 10.5, 12]
    result = np.empty((2, 3), np.float32)
    asked = np.array([[2, 0.5], [1, 1]], np.float32)
    inner_products_of(rows, np.array([[2, 0, 0], [1, 1, -1]]), asked, result)
    assert result.tolist() == [[2, 3, 3], [-0.5, -0.5, 3]]


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("by_tiles", [False, True])
def test_half_rows_are_searched_in_ranges_as_by_a_plain_product(
    gathered: bool, queries: int, by_tiles: bool, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = halves()
    plain = np.hstack(parts).astype(np.float32)
    asked = np.random.default_rng(1).normal(size=(queries, 40)).astype(np.float32)
    given = [SegmentedVectors([part[:1000], part[1000:]], np.arange(3000)) for part in parts] if gathered else parts
    matrix = MappedMatrix(given, STOPS)
    matrix.one_by_tiles = by_tiles
    scores = asked @ plain.T
    best = np.argsort(-scores, axis=1)[:, :20]
    allowed = np.arange(3000) % 3 != 0
    among = np.where(allowed, scores, -np.inf)
    for least in (10**9, 100):
        monkeypatch.setattr(cpu_matrix, "_ROWS_A_THREAD", least)
        rows, products = matrix.best(asked, 20)
        assert np.array_equal(rows, best)
        np.testing.assert_allclose(products, np.take_along_axis(scores, best, 1), rtol=1e-5, atol=1e-5)
        rows, _ = matrix.best(asked, 20, allowed)
        assert np.array_equal(rows, np.argsort(-among, axis=1)[:, :20])
    own = np.tile(np.array([5, 2999, -1, 5]), (queries, 1))
    found = matrix.similarities(own, asked)
    for member, (low, high) in enumerate(((0, 24), (24, 40))):
        expected = asked[:, low:high] @ plain[[5, 2999], low:high].T
        np.testing.assert_allclose(found[:, member, :2], expected, rtol=1e-5, atol=1e-5)
    # Equal rows get equal scores, wherever they stand.
    assert np.array_equal(found[:, :, 0], found[:, :, 3])


@pytest.mark.parametrize("block", [32, 96])
@pytest.mark.parametrize("queries", [1, 7])
def test_a_scan_in_ranges_lists_what_one_range_lists(
    block: int, queries: int, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = halves()
    matrix = MappedMatrix(parts, STOPS)
    asked = np.random.default_rng(1).normal(size=(queries, 40)).astype(np.float32)
    listed = []
    for least in (10**9, 100):
        monkeypatch.setattr(product_quantisation_scan, "_ROWS_A_THREAD", least)
        scan = QuantisedScan(matrix.sample(slice(None, None, 5)), 4, block)
        scan.fill(matrix, WEIGHTS, 20)
        rows, estimates = scan.search(asked, 50)
        assert (np.diff(estimates, axis=1) <= 0).all()
        assert all(len(set(line)) == 50 for line in rows.tolist())
        listed.append((rows, estimates, scan.worst_rows, scan.worst_errors))
    whole, ranges = listed
    np.testing.assert_allclose(ranges[1], whole[1], rtol=1e-6)
    # Rows of equal estimates may come in another order; those above the last estimate are the same.
    for mine, theirs, estimates in zip(ranges[0], whole[0], whole[1], strict=True):
        above = estimates > estimates[-1]
        assert set(theirs[above].tolist()) <= set(mine.tolist())
    assert np.array_equal(ranges[2], whole[2])
    np.testing.assert_array_equal(ranges[3], whole[3])


def test_errors_of_codes_are_those_of_the_decoded_rows() -> None:
    parts = halves(500)
    matrix = MappedMatrix(parts, STOPS)
    scan = QuantisedScan(matrix.sample(slice(None)), 4)
    scan.fill(matrix, WEIGHTS, 500)
    whole = matrix.sample(slice(None))
    places = scan._places
    spread = np.where(places >= 0, whole[:, places], 0)
    lost = scan._coder.decode(scan._coder.compute_codes(np.ascontiguousarray(spread))) - spread
    # A column's member: the first 24 components are the first one's.
    errors = sum(
        weight * np.linalg.norm(lost[:, (places >= low) & (places < high)], axis=1)
        for weight, (low, high) in zip(WEIGHTS, ((0, 24), (24, 40)), strict=True)
    )
    expected = errors[scan.worst_rows]
    np.testing.assert_allclose(scan.worst_errors, expected, rtol=1e-4)
    assert (errors > 1.3 * np.median(errors)).sum() <= len(scan.worst_rows)


def test_the_layout_of_codes_is_the_faster_one(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = MappedMatrix(halves(), STOPS)
    scans = measuring.Scans(matrix)
    codes = scans[measuring.SCANS[0]].encode(matrix.sample(slice(2000)))
    arranged: list[int] = []
    monkeypatch.setattr(scans[measuring.SCANS[0]], "arrange", arranged.append)
    for faster in measuring.BLOCKS:
        monkeypatch.setattr(
            measuring, "seconds_of", lambda call, best=faster: 1.0 if arranged[-1] == best else 2.0
        )  # fmt: skip
        assert scans.measured_block(codes, np.zeros((4, 40), np.float32)) == faster
        assert arranged[-1] == faster
