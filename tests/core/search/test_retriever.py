"""The retriever: exact against brute force, approximate against exact, explanations that add up."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from plain_votes import mixed_probabilities, neighbour_probabilities
from precision import f16, f32

from cbir.core.artifacts import Gallery, GalleryImage
from cbir.core.errors import ConfigurationError, QueryError
from cbir.core.images import Box
from cbir.core.metric import Projection, normalise
from cbir.core.search import Retriever
from cbir.core.search.candidate_generation import Kernel
from cbir.core.vector_index import VectorIndex, build_index, load_index
from cbir.core.vote import Fusion, SearchSpec, VoteSettings

N, DIMS, WEIGHTS = 3000, (24, 16, 8), (3.0, 2.0, 1.0)


@pytest.fixture(scope="module")
def vectors() -> list[np.ndarray]:
    """Three members' clustered unit vectors."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 40, N)
    return [normalise(rng.normal(size=(40, d))[codes] + 0.6 * rng.normal(size=(N, d))).astype(np.float16) for d in DIMS]


def gallery(labelled: bool = True) -> Gallery:
    codes = np.random.default_rng(0).integers(0, 40, N)
    return Gallery.from_images(
        GalleryImage(
            f"{i:05d}",
            f"/{i}",
            f"c{codes[i]:02d}" if labelled and i % 10 else None,
            1,
            1,
            f"{i:064x}",
            i,
            Box(0, 0, 1, 1),
        )
        for i in range(N)
    )


def retriever(
    vectors: list[np.ndarray],
    kinds: list[str | None],
    folder: Path,
    vote: VoteSettings | None = None,
    labelled: bool = True,
    kernel: Kernel = "auto",
) -> Retriever:
    indexes: list[VectorIndex | None] = []
    for i, kind in enumerate(kinds):
        if kind is None:
            indexes.append(None)
            continue
        path = folder / f"{i}.index"
        build_index(kind, vectors[i], path)
        indexes.append(load_index(kind, path, vectors[i], "cpu"))
    names = [f"m{i}" for i in range(len(vectors))]
    vote = vote or VoteSettings(dict(zip(names, WEIGHTS, strict=True)))
    projections = [Projection(np.zeros(d, np.float32), None, None) for d in DIMS]
    return Retriever(gallery(labelled), names, vectors, projections, vote, indexes, "test", "cpu", None, kernel)


def queries(vectors: list[np.ndarray], count: int = 40, seed: int = 1, noise: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, N, count)
    return np.hstack(
        [normalise(v[rows].astype(np.float32) + noise * rng.normal(size=(count, v.shape[1]))) for v in vectors]
    )


def brute_force(vectors: list[np.ndarray], query: np.ndarray, weights: np.ndarray) -> np.ndarray:
    parts = np.split(query, np.cumsum(DIMS)[:-1])
    return sum(w * (v.astype(np.float64) @ p) for w, v, p in zip(weights / weights.sum(), vectors, parts, strict=True))


@pytest.mark.parametrize("weights", [WEIGHTS, (1.0, 0.0, 0.0), (0.0, 1.0, 4.0)])
def test_exact_is_brute_force_for_any_weights(
    vectors: list[np.ndarray], tmp_path: Path, weights: tuple[float, ...]
) -> None:
    search = retriever(vectors, [None] * 3, tmp_path)
    w = np.array(weights, np.float32)
    q = queries(vectors)
    for query, ranking in zip(q, search.search(q, [SearchSpec(weights=w)] * len(q)), strict=True):
        scores = brute_force(vectors, query, w)
        assert ranking.rows.tolist() == np.argsort(-scores, kind="stable")[:10].tolist()
        np.testing.assert_allclose(ranking.fused, np.sort(scores)[::-1][:10], atol=f32(256))


def test_explanations_add_up(vectors: list[np.ndarray], tmp_path: Path) -> None:
    vote = VoteSettings({"m0": 3, "m1": 2, "m2": 1}, label_share=0.5)
    for kinds in ([None] * 3, ["faiss:Flat"] * 3):
        search = retriever(vectors, kinds, tmp_path, vote)
        for fusion in Fusion:
            for r in search.search(queries(vectors, 5), [SearchSpec(fusion=fusion)] * 5):
                np.testing.assert_allclose(r.contributions.sum(axis=1) + r.label_contributions, r.fused, atol=f32(32))
                assert (np.diff(r.scores) <= 0).all()
                assert ((r.scores >= 0) & (r.scores <= 1)).all()
                assert sum(p for _, p in r.labels) <= 1 + 1e-6


@pytest.mark.parametrize("kind", ["faiss:Flat", "exact"])
def test_member_by_member_search_is_exact_too(vectors: list[np.ndarray], tmp_path: Path, kind: str) -> None:
    exact = retriever(vectors, [None] * 3, tmp_path)
    mixed = retriever(vectors, [kind, "faiss:Flat", kind], tmp_path)
    q = queries(vectors)
    for a, b in zip(exact.search(q, [SearchSpec()] * 40), mixed.search(q, [SearchSpec()] * 40), strict=True):
        assert a.rows.tolist() == b.rows.tolist()
        np.testing.assert_allclose(a.fused, b.fused, atol=f32(32))


@pytest.mark.parametrize("kind", ["faiss:HNSW32", "faiss:IVF32,Flat", "faiss:SQfp16", "annoy:30"])
def test_approximate_search_recalls_the_exact_answer(vectors: list[np.ndarray], tmp_path: Path, kind: str) -> None:
    if kind.startswith("annoy") and importlib.util.find_spec("annoy") is None:
        pytest.skip("annoy is not installed (it needs a C++ compiler)")
    exact = retriever(vectors, [None] * 3, tmp_path)
    other = retriever(vectors, [kind] * 3, tmp_path)
    q = queries(vectors)
    pairs = zip(exact.search(q, [SearchSpec()] * 40), other.search(q, [SearchSpec()] * 40), strict=True)
    assert np.mean([len(np.intersect1d(a.rows, b.rows)) / 10 for a, b in pairs]) >= 0.95


def test_masks_exclusions_and_thresholds(vectors: list[np.ndarray], tmp_path: Path) -> None:
    q = queries(vectors, 1)
    for kinds in ([None] * 3, ["faiss:HNSW32"] * 3):
        search = retriever(vectors, kinds, tmp_path)
        full = search.search(q, [SearchSpec(limit=30)])[0]
        mask = np.zeros(N, bool)
        mask[[5, 900, 2999]] = True
        narrow = search.search(q, [SearchSpec(mask=mask)])[0]
        scores = brute_force(vectors, q[0], np.array(WEIGHTS))
        assert narrow.rows.tolist() == sorted([5, 900, 2999], key=lambda r: -scores[r])
        without = search.search(q, [SearchSpec(exclude_rows=(int(full.rows[0]), int(full.rows[2])))])[0]
        assert without.rows.tolist() == [full.rows[1], *full.rows[3:12]]
        some = search.search(q, [SearchSpec(min_score=float(full.scores[4]))])[0]
        assert some.rows.tolist() == full.rows[:5].tolist()
        assert not len(search.search(q, [SearchSpec(mask=np.zeros(N, bool))])[0].rows)
        assert len(search.search(q, [SearchSpec(limit=2500)])[0].rows) == 2500


def test_label_vote_raises_the_likely_class(vectors: list[np.ndarray], tmp_path: Path) -> None:
    names = dict(zip(("m0", "m1", "m2"), WEIGHTS, strict=True))
    plain = retriever(vectors, [None] * 3, tmp_path, VoteSettings(names))
    voting = retriever(vectors, [None] * 3, tmp_path, VoteSettings(names, label_share=1.0))
    q = queries(vectors, 60, seed=3, noise=0.3)
    codes = plain.gallery.label_codes

    def purity(search: Retriever) -> float:
        found = search.search(q, [SearchSpec()] * 60)
        return float(np.mean([(codes[r.rows] == plain.gallery.labels.index(r.labels[0][0])).mean() for r in found]))

    assert purity(plain) < 0.98  # the queries are hard enough to tell the two apart
    assert purity(voting) > purity(plain) + 0.02


@pytest.mark.parametrize("kernel", ["product", "scan"])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_images_of_likely_labels_rise_from_anywhere(
    vectors: list[np.ndarray], tmp_path: Path, kernel: Kernel, temperature: float
) -> None:
    vote = VoteSettings({"m0": 3, "m1": 2, "m2": 1}, label_share=2.0, temperature=temperature, text_share=0.5)
    search = retriever(vectors, [None] * 3, tmp_path, vote, kernel=kernel)
    codes, classes = search.gallery.label_codes.copy(), len(search.gallery.labels)
    rng = np.random.default_rng(5)
    q = queries(vectors, 33, noise=0.5)
    # Names of classes that the nearest images know nothing of; some images may not be hits.
    priors = [None if i % 3 else rng.dirichlet(np.full(classes, 0.05)).astype(np.float32) for i in range(33)]
    masks = [rng.random(N) < 0.5 if i % 5 == 1 else None for i in range(33)]
    outs = [tuple(rng.integers(0, N, i % 4).tolist()) for i in range(33)]
    specs = [
        SearchSpec(label_prior=prior, mask=mask, exclude_rows=out)
        for prior, mask, out in zip(priors, masks, outs, strict=True)
    ]
    for query, spec, found in zip(q, specs, search.search(q, specs), strict=True):
        fused = brute_force(vectors, query, np.array(WEIGHTS))
        fused[list(spec.exclude_rows)] = -np.inf
        near = neighbour_probabilities(fused, codes, vote.neighbours, temperature, classes)
        likely = mixed_probabilities({"names": spec.label_prior, "near": near}, {"names": 0.5, "near": 0.25})
        assert likely is not None
        raised = fused + vote.label_share * np.where(codes >= 0, likely[codes], 0)
        if spec.mask is not None:
            raised[~spec.mask] = -np.inf
        assert found.rows.tolist() == np.argsort(-raised, kind="stable")[:10].tolist()
        np.testing.assert_allclose(found.fused, np.sort(raised)[::-1][:10], atol=f32(256))
        assert found.labels[0][0] == search.gallery.labels[int(np.argmax(likely))]


@pytest.mark.parametrize("kernel", ["product", "scan"])
def test_a_batch_is_answered_as_its_queries_are_one_by_one(
    vectors: list[np.ndarray], tmp_path: Path, kernel: Kernel
) -> None:
    vote = VoteSettings({"m0": 3, "m1": 2, "m2": 1}, label_share=1.0, calibration=((-1.0, 0.0), (0.5, 0.3), (2.0, 1.0)))
    search = retriever(vectors, [None] * 3, tmp_path, vote, kernel=kernel)
    q = queries(vectors, 6, noise=0.4)
    mask = np.random.default_rng(6).random(N) < 0.3
    specs = [
        SearchSpec(), SearchSpec(limit=100), SearchSpec(mask=mask), SearchSpec(min_score=0.7, limit=50),
        SearchSpec(weights=np.array([0, 1, 1], np.float32)), SearchSpec(exclude_rows=(1, 2, 3)),
    ]  # fmt: skip
    for i, together in enumerate(search.search(q, specs)):
        alone = search.search(q[i : i + 1], specs[i : i + 1])[0]
        assert together.rows.tolist() == alone.rows.tolist()
        if kernel == "product":
            # A scan rounds its estimates batch by batch, so what is scored besides the hits differs at the margin.
            assert together.ranks.tolist() == alone.ranks.tolist()
        assert [name for name, _ in together.labels] == [name for name, _ in alone.labels]
        for name in ("scores", "fused", "similarities", "contributions", "label_contributions"):
            np.testing.assert_allclose(getattr(together, name), getattr(alone, name), atol=f32(256))
    assert search.search(q[:0], []) == []


def test_galleries_without_labels_predict_none(vectors: list[np.ndarray], tmp_path: Path) -> None:
    vote = VoteSettings({"m0": 1, "m1": 1, "m2": 1}, label_share=1.0)
    found = retriever(vectors, [None] * 3, tmp_path, vote, labelled=False).search(queries(vectors, 1), [SearchSpec()])[
        0
    ]
    assert found.labels == []
    assert not found.label_contributions.any()


def test_ties_break_by_image_id(tmp_path: Path) -> None:
    same = [np.tile(normalise(np.ones((1, d))), (N, 1)).astype(np.float16) for d in DIMS]
    r = retriever(same, [None] * 3, tmp_path).search(
        np.hstack([s[:1].astype(np.float32) for s in same]), [SearchSpec()]
    )
    assert np.ptp(r[0].fused) == 0
    assert r[0].rows.tolist() == sorted(r[0].rows.tolist())


def test_members_without_an_embedding_have_no_say(vectors: list[np.ndarray], tmp_path: Path) -> None:
    search = retriever(vectors, [None] * 3, tmp_path)
    only = search.project({"m1": vectors[1][:1].astype(np.float32)})
    found = search.search(only, [SearchSpec()])[0]
    assert found.rows[0] == 0
    np.testing.assert_allclose(found.contributions[:, [0, 2]], 0)
    np.testing.assert_allclose(found.fused[0], 1, atol=f16(2))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({}, "EMPTY_QUERY"),
        ({"mx": np.ones((1, 24), np.float32)}, "UNKNOWN_MEMBER"),
        ({"m0": np.ones((1, 5), np.float32)}, "BAD_EMBEDDING"),
        ({"m0": np.zeros((1, 24), np.float32)}, "BAD_EMBEDDING"),
        ({"m0": np.full((1, 24), np.nan, np.float32)}, "BAD_EMBEDDING"),
    ],
)
def test_bad_embeddings_are_named(vectors: list[np.ndarray], tmp_path: Path, raw: dict, reason: str) -> None:
    with pytest.raises(QueryError) as caught:
        retriever(vectors, [None] * 3, tmp_path).project(raw)
    assert caught.value.reason == reason


@pytest.mark.parametrize("weights", [(0, 0, 0), (-1, 1, 1), (np.nan, 1, 1), (1, 1)])
def test_bad_weights_are_named(vectors: list[np.ndarray], tmp_path: Path, weights: tuple[float, ...]) -> None:
    search = retriever(vectors, [None] * 3, tmp_path)
    with pytest.raises(QueryError) as caught:
        search.search(queries(vectors, 1), [SearchSpec(weights=np.array(weights, np.float32))])
    assert caught.value.reason == "BAD_WEIGHT"


def test_index_names(vectors: list[np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no index"):
        build_index("tree:7", vectors[0], tmp_path / "x")
    with pytest.raises(ConfigurationError, match="does not know the factory string"):
        build_index("faiss:Nonsense7", vectors[0], tmp_path / "x")
    with pytest.raises(ConfigurationError, match="cannot be trained"):
        build_index("faiss:IVF4096,Flat", vectors[0][:50], tmp_path / "x")


def test_a_filter_finds_all_its_images_through_an_index_that_gives_up(
    vectors: list[np.ndarray], tmp_path: Path
) -> None:
    exact = retriever(vectors, [None] * 3, tmp_path)
    ivf = retriever(vectors, ["faiss:IVF64,Flat"] * 3, tmp_path)
    q = queries(vectors, 8)
    for label in ("c03", "c17", "c29"):
        spec = SearchSpec(mask=exact.gallery.mask([label]))
        for a, b in zip(exact.search(q, [spec] * 8), ivf.search(q, [spec] * 8), strict=True):
            assert a.rows.tolist() == b.rows.tolist()
