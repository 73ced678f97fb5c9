"""Rows that lie in several arrays are those of one array, and an index of the first of these finds all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cbir.core.search.matrices.gallery_matrix import load_matrix
from cbir.core.vector_index import SegmentedVectors, build_index, grows, load_index


def drawn(count: int, width: int, seed: int) -> NDArray[np.float16]:
    rows = np.random.default_rng(seed).standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def segmented(width: int, seed: int = 0) -> tuple[SegmentedVectors, NDArray[np.float16]]:
    """300 of 400 rows of three segments, mixed, and the same rows as one array."""
    parts = [drawn(rows, width, seed + rows) for rows in (350, 0, 50)]
    places = np.sort(np.random.default_rng(seed).choice(350, 260, replace=False))
    places = np.insert(places, np.linspace(0, 260, 40, dtype=int), 350 + np.arange(40)).astype(np.int32)
    return SegmentedVectors(parts, places), np.concatenate(parts)[places]


def test_rows_are_those_of_one_array() -> None:
    rows, whole = segmented(5)
    assert (len(rows), rows.shape, rows.nbytes, rows.dtype) == (300, whole.shape, whole.nbytes, whole.dtype)
    for asked in (slice(None), slice(17, 203), slice(0, 0), np.array([3, 3, 299, 0]), [7, 2], np.zeros(0, np.int64)):
        np.testing.assert_array_equal(rows[asked], whole[asked])
    np.testing.assert_array_equal(rows[9], whole[9])
    np.testing.assert_array_equal(np.asarray(rows), whole)
    np.testing.assert_array_equal(np.array(rows, np.float32), whole.astype(np.float32))
    np.testing.assert_array_equal(rows.first(30)[:], whole[:30])


def test_rows_that_lie_side_by_side_are_not_copied() -> None:
    parts = [drawn(20, 4, 1), drawn(6, 4, 2)]
    rows = SegmentedVectors(parts, np.array([*range(3, 20), *range(20, 26)], np.int32))
    assert np.shares_memory(rows[2:17], parts[0])
    assert np.shares_memory(rows[17:], parts[1])
    assert not np.shares_memory(rows[10:20], parts[0]), "they lie in two segments"


@pytest.mark.parametrize("float32_bytes", [0, 2**20])
def test_a_matrix_of_segments_is_that_of_one_array(float32_bytes: int) -> None:
    members = [segmented(12), segmented(7, 3)]
    one = load_matrix([whole for _, whole in members], "cpu", float32_bytes)
    other = load_matrix([rows for rows, _ in members], "cpu", float32_bytes)
    queries = np.concatenate([drawn(3, 12, 8), drawn(3, 7, 9)], axis=1).astype(np.float32)
    allowed = np.arange(300) % 3 > 0
    for asked in (queries, queries[:1]):
        for arguments in ((20,), (20, allowed)):
            for expected, found in zip(one.best(asked, *arguments), other.best(asked, *arguments), strict=True):
                np.testing.assert_array_equal(found, expected)
    for expected, found in zip(
        one.best(queries[:, 12:], 9, member=1), other.best(queries[:, 12:], 9, member=1), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    rows = np.array([[0, 5, 299], [-1, 7, 7], [100, 200, 3]])
    np.testing.assert_array_equal(other.similarities(rows, queries)[1:], one.similarities(rows, queries)[1:])
    np.testing.assert_array_equal(other.vectors_of(rows[2]), one.vectors_of(rows[2]))


@pytest.mark.parametrize("kind", ["faiss:Flat", "faiss:HNSW16", "faiss:IVF4,SQfp16"])
def test_an_index_of_the_first_segment_finds_all_rows(tmp_path: Path, kind: str) -> None:
    assert grows(kind)
    rows, whole = segmented(16)
    build_index(kind, rows.segments[0], tmp_path / "index")
    index = load_index(kind, tmp_path / "index", rows, "cpu")
    found, scores = index.search(whole.astype(np.float32), 5)
    np.testing.assert_array_equal(found[:, 0], np.arange(300))
    np.testing.assert_allclose(scores[:, 0], 1, atol=0.01)
    everything = index.search(whole[:1].astype(np.float32), 400)[0][0]
    assert (np.sort(everything[everything >= 0]) <= 299).all(), "no row that is gone"


def test_which_kinds_grow() -> None:
    assert grows("exact")
    assert not grows("annoy:5")
