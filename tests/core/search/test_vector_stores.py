"""Every store of vectors: the same assertions for all, against scores computed here with plain products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clustered_index import DIMS, MEMBERS, clustered, publish

from cbir.core.artifacts import IndexStore, IndexVersion
from cbir.core.errors import ConfigurationError, QueryError
from cbir.core.milvus import vector_store
from cbir.core.search import Searcher, VectorStore
from cbir.core.vote import Conditions, Fusion, SearchSpec

KINDS = ("local", "milvus")
COUNT = 600


@pytest.fixture(scope="module", params=KINDS)
def make_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Path], VectorStore]]:
    """Make the store of an index folder."""
    if request.param == "local":
        yield lambda index: vector_store(index, None)
        return
    pytest.importorskip("pymilvus", reason="the extra `milvus` is not installed")
    pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")
    file = tmp_path_factory.mktemp("milvus") / "lite.db"
    yield lambda index: vector_store(index, str(file))


@pytest.fixture(scope="module")
def published(
    make_store: Callable[[Path], VectorStore], tmp_path_factory: pytest.TempPathFactory
) -> tuple[VectorStore, IndexVersion]:
    index = tmp_path_factory.mktemp("clustered") / "index"
    index.mkdir()
    store = make_store(index)
    store.check([member.name for member in MEMBERS])
    return store, publish(index, store, COUNT)


@pytest.fixture(scope="module")
def searcher(published: tuple[VectorStore, IndexVersion]) -> Searcher:
    store, version = published
    return store.open(version, "cpu")


def queries(count: int, seed: int = 5) -> np.ndarray:
    return np.concatenate(clustered(count, 8, seed)[0], axis=1).astype(np.float32)


def fused(searcher: Searcher, query: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """All images' weighted sums of cosines, in float64."""
    rows = searcher.vectors_of(range(COUNT)).astype(np.float64)
    return (rows * np.repeat(weights, DIMS)) @ query.astype(np.float64)


def test_vectors_come_back_as_they_were(searcher: Searcher) -> None:
    parts, _ = clustered(COUNT, 8, 0)
    whole = np.concatenate(parts, axis=1).astype(np.float32)
    rows = [5, 0, COUNT - 1, 5]
    np.testing.assert_array_equal(searcher.vectors_of(rows), whole[rows])


def test_hits_are_the_best_of_all_images(searcher: Searcher) -> None:
    asked = queries(20)
    spec = SearchSpec(10, np.array([1, 2, 0.5], np.float32))
    plain = replace(spec, label_prior=None)
    weights = spec.weights / spec.weights.sum()
    for query, ranking in zip(asked, searcher.search(asked, [plain] * 20), strict=True):
        scores = fused(searcher, query, weights)
        own = ranking.fused - ranking.label_contributions
        np.testing.assert_allclose(own, scores[ranking.rows], atol=1e-5)
        np.testing.assert_allclose(ranking.contributions.sum(axis=1), own, atol=1e-5)
        # The label's bonus is known for hits alone, so the others are bounded by the largest.
        outside = np.delete(scores, ranking.rows)
        assert ranking.fused[-1] >= outside.max() - 1e-5


def test_conditions_and_exclusions_hold(searcher: Searcher) -> None:
    gallery = searcher.gallery
    for names, excluded, metadata in (
        ([gallery.labels[0], gallery.labels[3]], [], {}),
        ([], [gallery.labels[1]], {}),
        ([], [], {"from": ('x" or row >= 0 or label == "', "it's")}),
        ([gallery.labels[2]], [], {'o"d': ("1",), "from": ("c\\", "{y}", 'a"b')}),
    ):
        conditions = Conditions(
            tuple(gallery.codes_of(names)) if names else None, tuple(gallery.codes_of(excluded)), metadata
        )
        mask = gallery.mask(names, excluded, metadata)
        assert mask is not None
        assert 0 < mask.sum() < COUNT
        out = int(np.flatnonzero(mask)[0])
        spec = SearchSpec(10, mask=mask, conditions=conditions, exclude_rows=(out,))
        for query, ranking in zip(queries(3), searcher.search(queries(3), [spec] * 3), strict=True):
            allowed = spec.allowed(COUNT)
            assert allowed is not None
            assert allowed[ranking.rows].all()
            assert len(ranking.rows) == min(10, allowed.sum())
            if len(names) == 1:  # one label for all: the bonus does not change the order
                scores = np.where(allowed, fused(searcher, query, searcher.weights), -np.inf)
                best = np.sort(scores)[::-1][: len(ranking.rows)]
                np.testing.assert_allclose(ranking.fused - ranking.label_contributions, best, atol=1e-5)


def test_equal_images_come_in_the_order_of_ids(searcher: Searcher) -> None:
    query = searcher.vectors_of([3])
    spec = SearchSpec(2, mask=np.isin(np.arange(COUNT), [3, 4, 10]))
    rows = searcher.search(query, [spec])[0].rows.tolist()
    assert rows in ([3, 4], [4, 3])
    labels = searcher.gallery.label_codes
    assert rows == [3, 4] or labels[3] != labels[4]


def test_fusion_by_rank_and_left_out_members(searcher: Searcher) -> None:
    asked = queries(2)
    ranked = searcher.search(asked, [SearchSpec(5, fusion=Fusion.RECIPROCAL_RANK)] * 2)
    assert all(len(ranking.rows) == 5 for ranking in ranked)
    alone = asked[:1].copy()
    alone[:, DIMS[0] :] = 0  # the query has no embedding of the other members
    ranking = searcher.search(alone, [SearchSpec(5)])[0]
    np.testing.assert_allclose(ranking.similarities[:, 1:], 0, atol=1e-6)
    assert (ranking.contributions[:, 0] > 0).all()


def test_bad_queries_are_refused(searcher: Searcher) -> None:
    with pytest.raises(QueryError, match="limit is 0"):
        searcher.search(queries(1), [SearchSpec(0)])
    with pytest.raises(QueryError, match="no member"):
        searcher.project({"mouth": np.ones((1, 3), np.float32)})


def test_publishing_rolling_back_and_collecting(make_store: Callable[[Path], VectorStore], tmp_path: Path) -> None:
    index = tmp_path / "my index"
    index.mkdir()
    store = make_store(index)
    first = publish(index, store, 40, seed=1)
    serving = store.open(first, "cpu")
    before = serving.vectors_of([0, 1])
    second = publish(index, store, 50, seed=2)
    # Whoever has the first version open goes on with it.
    np.testing.assert_array_equal(serving.vectors_of([0, 1]), before)
    assert len(serving.search(queries(1), [SearchSpec(3)])[0].rows) == 3
    opened = IndexStore(index, on_live=store.make_live)
    assert opened.current() == second.name
    with opened.lock():
        assert opened.rollback() == first.name
        np.testing.assert_array_equal(store.open(opened.open(), "cpu").vectors_of([0, 1]), before)
        opened.activate(second.name)
        assert opened.collect(0) == [first.name]
        store.retain([opened.open()])
    assert len(store.open(opened.open(), "cpu").gallery) == 50


def test_versions_of_another_store_are_refused(make_store: Callable[[Path], VectorStore], tmp_path: Path) -> None:
    index = tmp_path / "index"
    index.mkdir()
    store = make_store(index)
    version = publish(index, store, 40)
    other = vector_store(index, "http://127.0.0.1:1") if store.kind == "local" else vector_store(index, None)
    with pytest.raises(ConfigurationError, match="are in the store"):
        other.open(version)
