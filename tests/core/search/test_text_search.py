"""The joint space against brute force in NumPy and softmaxes worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from precision import f32

import cbir.core.search.text_search
from cbir.core.artifacts import Gallery, GalleryImage
from cbir.core.errors import QueryError
from cbir.core.images import Box
from cbir.core.search import JointSpace, names_trust, zero_shot_probabilities
from cbir.core.vote import Fusion, SearchSpec

N, MEMBERS, DIMS = 500, ("clip", "resnet", "wide"), {"clip": 8, "wide": 12}
WEIGHTS = np.array([1.0, 5.0, 3.0], np.float32)
LABELS = ("cat", "dog", "emu")


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {name: unit(rng.normal(size=(N, d))).astype(np.float16) for name, d in DIMS.items()}
    for rows in found.values():
        rows[7] = rows[3]  # a tie
    return found


@pytest.fixture(scope="module")
def classes() -> dict[str, tuple[np.ndarray, float]]:
    rng = np.random.default_rng(1)
    return {name: (unit(rng.normal(size=(3, d))), 10.0) for name, d in DIMS.items()}


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    return Gallery.from_images(
        GalleryImage(f"{i:03d}", f"/{i}", LABELS[i % 3], 1, 1, f"{i:064x}", i, Box(0, 0, 1, 1)) for i in range(N)
    )


@pytest.fixture(scope="module")
def space(gallery: Gallery, vectors: dict[str, np.ndarray], classes: dict[str, tuple[np.ndarray, float]]) -> JointSpace:
    return JointSpace(gallery, MEMBERS, vectors, classes, "cpu")


@pytest.fixture(scope="module")
def words() -> np.ndarray:
    rng = np.random.default_rng(2)
    return np.concatenate([unit(rng.normal(size=d)) for d in DIMS.values()])


def cosines(vectors: dict[str, np.ndarray], words: np.ndarray) -> np.ndarray:
    """(N, 2)."""
    return np.stack([vectors["clip"].astype(np.float32) @ words[:8], vectors["wide"].astype(np.float32) @ words[8:]], 1)


@pytest.mark.parametrize("float32_bytes", [2**30, 0], ids=["whole", "half precision in blocks"])
def test_search_is_the_weighted_mean_of_the_cosines(
    monkeypatch: pytest.MonkeyPatch, gallery: Gallery, vectors: dict[str, np.ndarray], words: np.ndarray,
    float32_bytes: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(cbir.core.search.text_search, "FLOAT32_BYTES", float32_bytes)
    monkeypatch.setattr(cbir.core.search.text_search, "_BLOCK_ROWS", 64)
    space = JointSpace(gallery, MEMBERS, vectors, {}, "cpu")
    ranking = space.search(words, WEIGHTS, SearchSpec(limit=20))
    expected = cosines(vectors, words)
    fused = expected @ np.array([0.25, 0.75], np.float32)
    order = np.argsort(-fused, kind="stable")[:20]
    assert ranking.rows.tolist() == order.tolist()
    np.testing.assert_allclose(ranking.fused, fused[order], atol=f32(256))
    np.testing.assert_allclose(ranking.similarities[:, [0, 2]], expected[order], atol=f32(256))
    np.testing.assert_allclose(ranking.contributions.sum(axis=1), ranking.fused, atol=f32(32))
    for other in (ranking.similarities, ranking.contributions, ranking.ranks):
        assert not other[:, 1].any(), "resnet does not understand words"
    by_clip = np.argsort(np.argsort(-expected[:, 0], kind="stable")) + 1
    assert ranking.ranks[:, 0].tolist() == by_clip[order].tolist()
    assert ranking.labels == []


def test_equal_images_come_in_their_order_and_share_ranks(space: JointSpace, words: np.ndarray) -> None:
    ranking = space.search(words, WEIGHTS, SearchSpec(limit=N))
    rows = ranking.rows.tolist()
    assert rows.index(7) == rows.index(3) + 1
    assert ranking.ranks[rows.index(7)].tolist() == ranking.ranks[rows.index(3)].tolist()


def test_negative_scores_are_shown_as_zero(space: JointSpace, words: np.ndarray) -> None:
    ranking = space.search(words, WEIGHTS, SearchSpec(limit=N))
    assert ranking.fused.min() < 0
    assert ranking.scores.min() == 0
    positive = ranking.fused > 0
    np.testing.assert_array_equal(ranking.scores[positive], ranking.fused[positive])
    assert (np.diff(ranking.scores) <= 0).all()


def test_filters_exclusions_and_thresholds(space: JointSpace, words: np.ndarray) -> None:
    everything = space.search(words, WEIGHTS, SearchSpec(limit=N))
    mask = np.arange(N) % 2 == 0
    out = int(everything.rows[everything.rows % 2 == 0][0])
    some = space.search(words, WEIGHTS, SearchSpec(limit=5, mask=mask, exclude_rows=(out,)))
    expected = [row for row in everything.rows.tolist() if mask[row] and row != out][:5]
    assert some.rows.tolist() == expected
    few = space.search(words, WEIGHTS, SearchSpec(limit=N, min_score=float(everything.scores[11])))
    assert few.rows.tolist() == everything.rows[:12].tolist()
    assert len(space.search(words, WEIGHTS, SearchSpec(mask=np.zeros(N, bool))).rows) == 0


def test_rank_fusion(space: JointSpace, vectors: dict[str, np.ndarray], words: np.ndarray) -> None:
    ranking = space.search(words, WEIGHTS, SearchSpec(limit=10, fusion=Fusion.RECIPROCAL_RANK))
    both = cosines(vectors, words)
    ranks = 1 + (both[:, None, :] < both[None, :, :]).sum(axis=1)
    fused = (np.array([0.25, 0.75]) * 61 / (60 + ranks)).sum(axis=1)
    np.testing.assert_allclose(ranking.fused, np.sort(fused)[::-1][:10], atol=f32(32))
    np.testing.assert_allclose(ranking.fused, fused[ranking.rows], atol=f32(32))


def test_members_without_a_say_lend_their_weight(space: JointSpace, words: np.ndarray) -> None:
    half = words.copy()
    half[8:] = 0
    alone = space.search(half, WEIGHTS, SearchSpec(limit=5))
    weighted = space.search(words, np.array([1, 0, 0], np.float32), SearchSpec(limit=5))
    assert alone.rows.tolist() == weighted.rows.tolist()
    np.testing.assert_allclose(alone.fused, weighted.fused)
    with pytest.raises(QueryError, match="raise that of clip or wide"):
        space.search(words, np.array([0, 1, 0], np.float32), SearchSpec())
    with pytest.raises(QueryError, match=r"raise that of clip$"):
        space.search(half, np.array([0, 1, 1], np.float32), SearchSpec())


def test_zero_shot_by_hand() -> None:
    classes = np.array([[1, 0], [0, 1]], np.float32)
    found = zero_shot_probabilities(np.array([[1, 0], [0.6, 0.8]], np.float32), classes, 2.0)
    e = np.exp
    expected = [[e(2) / (e(2) + 1), 1 / (e(2) + 1)], [e(1.2) / (e(1.2) + e(1.6)), e(1.6) / (e(1.2) + e(1.6))]]
    np.testing.assert_allclose(found, expected, rtol=f32(256))
    # Large scales do not overflow.
    assert zero_shot_probabilities(np.array([[1, 0]], np.float32), classes, 1e4).tolist() == [[1, 0]]


def test_labels_are_the_members_softmaxes_by_weight(
    space: JointSpace, vectors: dict[str, np.ndarray], classes: dict[str, tuple[np.ndarray, float]]
) -> None:
    point = space.vectors_of([5, 6])
    np.testing.assert_allclose(point[0, :8], unit(vectors["clip"][5].astype(np.float32)), atol=f32(32))
    found = space.label_probabilities(point, np.stack([WEIGHTS, WEIGHTS]))[0]
    parts = []
    for name in DIMS:
        odds = np.exp(10 * (classes[name][0] @ unit(vectors[name][5].astype(np.float32))))
        parts.append(odds / odds.sum())
    np.testing.assert_allclose(found, 0.25 * parts[0] + 0.75 * parts[1], rtol=f32(2048))


def test_trust_by_hand() -> None:
    # 60 of 100 labelled images are of one class: to say it every time is right in 0.6, with a standard error of 0.049.
    codes = np.repeat([0, 1, 2, -1], [60, 30, 10, 50])
    assert names_trust(0.8, codes) == pytest.approx(0.5)
    assert names_trust(1.0, codes) == 1
    assert [names_trust(accuracy, codes) for accuracy in (0.0, 0.6, 0.69)] == [0, 0, 0]
    assert names_trust(0.7, codes) == pytest.approx(0.25)
    assert names_trust(1.0, np.zeros(9, int)) == 0, "one class: its name tells nothing"
    assert names_trust(0.0, np.full(9, -1)) == 0


def test_priors_sum_to_the_trust_and_leave_out_who_is_not_trusted(
    gallery: Gallery, vectors: dict[str, np.ndarray], classes: dict[str, tuple[np.ndarray, float]]
) -> None:
    def priors(**trust: float) -> tuple[np.ndarray | None, np.ndarray | None]:
        space = JointSpace(gallery, MEMBERS, vectors, classes, "cpu", trust)
        point, weights = space.vectors_of([5]), WEIGHTS[None]
        return space.label_priors(point, weights)[0], space.label_probabilities(point, weights)[0]

    full, plain = priors(clip=1, wide=1)
    assert full is not None
    np.testing.assert_array_equal(full, plain)
    (clip, same), (wide, _) = priors(clip=0.5, wide=0), priors(clip=0, wide=1)
    np.testing.assert_array_equal(same, plain)
    assert clip is not None
    assert wide is not None
    assert (clip.sum(), wide.sum()) == (pytest.approx(0.5), pytest.approx(1))
    # Weights 1 and 3 times trust: 0.5 and 3.
    both, _ = priors(clip=0.5, wide=1)
    assert both is not None
    np.testing.assert_allclose(both, (0.5 * clip + 3 * wide) / 3.5, rtol=f32(256))
    assert priors(clip=0, wide=0)[0] is None


def test_no_opinion_is_none(space: JointSpace, words: np.ndarray) -> None:
    half = words.copy()
    half[:8] = 0
    points = np.stack([half, half, np.zeros_like(words)])
    weights = np.array([[1, 0, 1], [1, 1, 0], [1, 1, 1]], np.float32)
    found = space.label_probabilities(points, weights)
    assert found[0] is not None
    assert found[0].sum() == pytest.approx(1)
    assert found[1:] == [None, None]


def test_words_are_told_by_the_names_of_the_classes(
    space: JointSpace, classes: dict[str, tuple[np.ndarray, float]]
) -> None:
    emu = np.concatenate([rows[2] for rows, _ in classes.values()])
    labels = space.search(emu, WEIGHTS, SearchSpec()).labels
    assert labels[0][0] == "emu"
    assert [p for _, p in labels] == sorted((p for _, p in labels), reverse=True)
