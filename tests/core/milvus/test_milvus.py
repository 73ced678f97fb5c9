"""Vectors in Milvus Lite: the same answers as from files, and what goes wrong is told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clustered_index import HOSTILE, MEMBERS, clustered, publish

from cbir.core.artifacts import IndexStore, IndexVersion
from cbir.core.errors import ArtifactError, ConfigurationError, StoreUnavailableError
from cbir.core.milvus import MilvusStore, vector_store
from cbir.core.milvus.collection import Collection
from cbir.core.milvus.connection import MilvusConnection
from cbir.core.milvus.filters import expression, facets
from cbir.core.search import LocalStore, Searcher
from cbir.core.vote import Conditions, Ranking, SearchSpec, VoteSettings

pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")

#: Fewer images than a local search scans by codes, so that its candidates are those of a product with all rows.
COUNT = 600
#: CBIR_QUERIES=1000 asks as many as the figures of docs/scaling.md.
QUERIES = int(os.environ.get("CBIR_QUERIES", "100"))


@dataclass(frozen=True)
class Lite:
    """A Milvus Lite file with one index in it."""

    file: Path
    index: Path
    store: MilvusStore
    version: IndexVersion

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return MilvusConnection(str(self.file)).call(method, *args, **kwargs)

    @property
    def collection(self) -> str:
        return str(self.version.manifest.store["collection"])


def milvus(folder: Path, count: int = COUNT) -> Lite:
    index = folder / "my; index"
    index.mkdir()
    store = vector_store(index, str(folder / "lite.db"))
    assert isinstance(store, MilvusStore)
    return Lite(folder / "lite.db", index, store, publish(index, store, count, clusters=12))


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Lite:
    return milvus(tmp_path_factory.mktemp("milvus"))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    index = tmp_path_factory.mktemp("local") / "index"
    store = LocalStore()
    return store.open(publish(index, store, COUNT, clusters=12), "cpu")


@pytest.fixture
def own(tmp_path: Path) -> Lite:
    """One that a test may spoil."""
    return milvus(tmp_path, 30)


def specs(searcher: Searcher, count: int) -> list[SearchSpec]:
    """Queries as they come: most without conditions, many with weights of their own, some with filters."""
    rng, gallery, made = np.random.default_rng(11), searcher.gallery, []
    for i in range(count):
        weights = rng.random(3).astype(np.float32) if i % 3 == 0 else None
        exclude = tuple(rng.integers(0, COUNT, 2).tolist()) if i % 4 == 0 else ()
        labels, out, metadata = [], [], {}
        if i % 7 == 0:
            kind = i // 7 % 3
            if kind == 0:
                labels = rng.choice(gallery.labels, 2, replace=False).tolist()
            elif kind == 1:
                out = [str(rng.choice(gallery.labels))]
            else:
                metadata = {"from": tuple(rng.choice(HOSTILE, 3).tolist()), 'o"d': ("0", "2")}
        mask = gallery.mask(labels, out, metadata)
        conditions = None
        if mask is not None:
            codes = tuple(gallery.codes_of(labels)) if labels else None
            conditions = Conditions(codes, tuple(gallery.codes_of(out)), metadata)
        made.append(SearchSpec(10, weights, mask=mask, conditions=conditions, exclude_rows=exclude))
    return made


def test_queries_get_the_same_hits_with_the_same_votes(lite: Lite, local: Searcher) -> None:
    searcher = lite.store.open(lite.version)
    queries = np.concatenate(clustered(QUERIES, 12, 5)[0], axis=1).astype(np.float32)
    asked = specs(local, QUERIES)
    for start in range(0, QUERIES, 50):
        some = slice(start, start + 50)
        wanted, found = local.search(queries[some], asked[some]), searcher.search(queries[some], asked[some])
        for one, other in zip(wanted, found, strict=True):
            same(one, other)


def same(one: Ranking, other: Ranking) -> None:
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.ranks, other.ranks)
    for name in ("scores", "fused", "similarities", "contributions", "label_contributions"):
        # The same arithmetic on the same numbers; sums may be taken in another order.
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-6, err_msg=name)
    assert [label for label, _ in one.labels] == [label for label, _ in other.labels]


def test_expansion_and_augmented_votes_agree_too(lite: Lite, tmp_path: Path) -> None:
    vote = VoteSettings({"eye": 1.0, "ear": 1.0, "nose": 1.0}, label_share=1.0, expansion_neighbours=3)
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    plain = LocalStore()
    remote = vector_store(there, str(lite.file))
    one = plain.open(publish(here, plain, 200, vote=vote), "cpu")
    other = remote.open(publish(there, remote, 200, vote=vote))
    queries = np.concatenate(clustered(10, 8, 6)[0], axis=1).astype(np.float32)
    for wanted, found in zip(
        one.search(queries, [SearchSpec(10)] * 10), other.search(queries, [SearchSpec(10)] * 10), strict=True
    ):
        same(wanted, found)


def test_expressions_hold_numbers_only() -> None:
    assert expression(None) == ""
    assert expression(Conditions(labels=(1, 2))) == "label_code in [1, 2]"
    assert expression(Conditions(exclude_labels=(3,))) == "label_code not in [3]"
    wild = expression(Conditions((0,), (), {value: (value, "x") for value in HOSTILE}))
    assert set(wild.replace("label_code in", "").replace("array_contains_any(facets,", "").replace(" and ", "")) <= set(
        "0123456789[], )"
    )
    assert facets({"a": "bc"}) != facets({"ab": "c"})
    assert all(0 <= facet < 2**63 for facet in facets({value: value for value in HOSTILE}))


def test_the_alias_follows_the_live_version(own: Lite) -> None:
    alias = own.version.manifest.store["alias"]
    assert alias.startswith("cbir_my_index_")
    assert own.call("describe_alias", alias)["collection_name"] == own.collection
    second = publish(own.index, own.store, 20)
    assert own.call("describe_alias", alias)["collection_name"] == second.manifest.store["collection"]
    store = IndexStore(own.index, on_live=own.store.make_live)
    with store.lock():
        store.rollback()
    assert own.call("describe_alias", alias)["collection_name"] == own.collection
    # A version cannot go live behind Milvus's back.
    store = IndexStore(own.index)
    with store.lock(), pytest.raises(ConfigurationError, match="--milvus-uri"):
        store.activate(second.name)


def test_what_a_killed_indexer_left_is_dropped(own: Lite) -> None:
    alias = own.version.manifest.store["alias"]
    left = f"{alias}_{'0' * 16}"
    for name in (left, f"{alias}_other", "somebody_elses"):
        own.call("create_collection", name, dimension=4)
    publish(own.index, own.store, 20)
    names = own.call("list_collections")
    assert left not in names
    assert {own.collection, f"{alias}_other", "somebody_elses"} <= {*names}


def test_collections_that_are_not_this_version_are_refused(own: Lite) -> None:
    own.call("delete", own.collection, ids=[0])
    with pytest.raises(ArtifactError, match="has 29 rows where the index has 30"):
        own.store.open(own.version)
    own.call("drop_collection", own.collection)
    with pytest.raises(ArtifactError, match="has no collection cbir_my_index"):
        own.store.open(own.version)
    own.call("create_collection", own.collection, dimension=4)
    with pytest.raises(ArtifactError, match="no vectors of 12 components for member 'eye'"):
        own.store.open(own.version)


def test_rows_that_vanish_during_a_search_are_told(own: Lite) -> None:
    searcher = own.store.open(own.version)
    own.call("drop_collection", own.collection)
    with pytest.raises(ArtifactError, match="was dropped while it"):
        searcher.search(np.ones((1, 30), np.float32), [SearchSpec(3)])


def test_milvus_that_is_away_is_told_and_found_again(own: Lite, monkeypatch: pytest.MonkeyPatch) -> None:
    from milvus_lite.server_manager import server_manager_instance

    monkeypatch.setattr("cbir.core.milvus.connection._CALL_SECONDS", 1.0)
    monkeypatch.setattr("cbir.core.milvus.connection._PAUSE_SECONDS", 0.3)
    searcher = own.store.open(own.version)
    server_manager_instance.release_server(str(own.file))
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        searcher.search(np.ones((1, 30), np.float32), [SearchSpec(3)])
    with pytest.raises(StoreUnavailableError, match="did not answer a moment ago"):
        searcher.search(np.ones((1, 30), np.float32), [SearchSpec(3)])
    monkeypatch.setattr("cbir.core.milvus.connection._CALL_SECONDS", 30.0)
    monkeypatch.setattr("cbir.core.milvus.connection.time.monotonic", lambda: float("inf"))
    assert len(searcher.search(np.ones((1, 30), np.float32), [SearchSpec(3)])[0].rows) == 3


def test_too_many_members_are_told_before_any_image_is_read(own: Lite, monkeypatch: pytest.MonkeyPatch) -> None:
    own.store.check([member.name for member in MEMBERS])
    assert not [name for name in own.call("list_collections") if "trial" in name]

    def refuse(self: MilvusConnection, method: str, *args: Any, **kwargs: Any) -> Any:
        # The words of a Milvus server with its default settings.
        raise ArtifactError("maximum vector field's number should be limited to 4", reason="STORE_REFUSED")

    monkeypatch.setattr(MilvusConnection, "call", refuse)
    with pytest.raises(ConfigurationError, match=r"set proxy\.maxVectorFieldNum to 5 or more"):
        own.store.check(["a", "b", "c", "d", "e"])


def test_addresses_and_tokens(tmp_path: Path) -> None:
    for wrong in ("", "nowhere", "ftp://x", "file:///x.json"):
        with pytest.raises(ConfigurationError, match="is no address of Milvus"):
            vector_store(tmp_path, wrong)
    with pytest.raises(ConfigurationError, match="cannot be read as the token"):
        vector_store(tmp_path, "http://127.0.0.1:1", tmp_path / "absent")
    assert MilvusConnection("http://me:secret@127.0.0.1:1").name == "http://127.0.0.1:1"


def test_manifests_that_name_no_collection_are_refused() -> None:
    sound = Collection.new("cbir_a", 3, [("m", 4)], "FLAT").to_json()
    assert Collection.from_json(sound, Path("x")).to_json() == sound
    for change in (
        {"collection": "somebody; drop"}, {"alias": "../cbir_a"}, {"collection": 5}, {"rows": "many"},
        {"members": [["m"]]}, {"index": "IVF"}, {"collection": "x" * 300},
    ):  # fmt: skip
        with pytest.raises(ArtifactError, match="names no collection of Milvus"):
            Collection.from_json({**sound, **change}, Path("x"))
    with pytest.raises(ArtifactError, match="in format 9; this program reads 1"):
        Collection.from_json({**sound, "format": 9}, Path("x"))
