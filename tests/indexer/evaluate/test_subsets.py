"""Subsets of the ensemble, confusions and near duplicates: cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cbir.core.artifacts import Gallery, GalleryImage
from cbir.core.images import Box
from cbir.core.metric import Projection
from cbir.core.search import Appearance, Retriever
from cbir.core.vote import VoteSettings
from cbir.indexer.evaluate.answers import Answer, Judge, ask, measured
from cbir.indexer.evaluate.confusion import NO_LABEL, OTHERS, confusions
from cbir.indexer.evaluate.member_subsets import choose_subsets, measure_subsets, subset_weights
from cbir.indexer.evaluate.near_duplicates import find_near_duplicates
from cbir.indexer.evaluate.query_set import QuerySet


def gallery(*labels: str | None, phashes: tuple[int, ...] = ()) -> Gallery:
    """Images "0", "1", .. of these labels, whose digests are their numbers."""
    return Gallery.from_images(
        GalleryImage(
            str(i), f"/{i}", label, 1, 1, f"{i:064x}", phashes[i] if phashes else 0, Box(0, 0, 1, 1)
        )
        for i, label in enumerate(labels)
    )  # fmt: skip


def angles(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def queries(
    vectors: np.ndarray, *labels: str, digests: tuple[str, ...] = (), phashes: tuple[int, ...] = ()
) -> QuerySet:
    count = len(labels)
    return QuerySet(
        vectors, list(labels), list(digests or ("f" * 64,) * count), np.array(phashes or (0,) * count, np.uint64)
    )


@pytest.fixture
def two_members() -> Retriever:
    """Four images; to a query at 0 degrees "eye" ranks them 0, 1, 2, 3 and "ear" 3, 2, 1, 0, less surely."""
    parts = [angles(0, 20, 40, 60), angles(9, 6, 3, 0)]
    plain = Projection(np.zeros(2, np.float32), None, None)
    vote = VoteSettings({"eye": 1.0, "ear": 1.0})
    pictures = gallery("cat", "dog", "cat", "dog")
    halves = [part.astype(np.float16) for part in parts]
    return Retriever(pictures, ["eye", "ear"], halves, [plain, plain], vote, [None, None], "exact", "cpu")


def test_subsets_by_hand(two_members: Retriever) -> None:
    asked = queries(np.concatenate([angles(0, 0), angles(0, 0)], axis=1), "cat", "dog")
    judge = Judge.of(two_members.gallery, asked)
    assert judge.totals == (2, 2)
    table = measure_subsets(two_members, asked, judge, {})
    assert table.complete
    # By eye the cats are at ranks 1 and 3, the dogs at 2 and 4; by ear it is the other way round.
    first, second = (1 + 2 / 3) / 2, (1 / 2 + 2 / 4) / 2
    figures = {names: measures.ap for names, measures in table.subsets.items()}
    assert figures[("eye",)] == pytest.approx((first, second))
    assert figures[("ear",)] == pytest.approx((second, first))
    # Together the eye, whose cosines differ more, decides.
    assert figures[("eye", "ear")] == pytest.approx((first, second))
    gains = {gain.member: gain for gain in table.gains}
    assert gains["eye"].without == pytest.approx((first + second) / 2)
    assert gains["eye"].gain == pytest.approx(0)
    # One query gains what the other loses: the interval tells.
    assert gains["eye"].interval == pytest.approx((second - first, first - second))
    assert gains["ear"].interval == (0, 0)


def test_a_known_subset_is_not_measured_again(two_members: Retriever) -> None:
    asked = queries(np.concatenate([angles(0), angles(0)], axis=1), "cat")
    judge = Judge.of(two_members.gallery, asked)
    other = measured(ask(two_members, asked, judge, np.array([0, 1], np.float32)), asked.labels)
    table = measure_subsets(two_members, asked, judge, {("eye",): other})
    assert table.subsets[("eye",)] is other


def test_which_subsets_are_chosen() -> None:
    assert choose_subsets(["a"]) == ([("a",)], True)
    every, complete = choose_subsets(list("abcdef"))
    assert (len(every), len(set(every)), complete) == (63, 63, True)
    some, complete = choose_subsets(list("abcdefg"))
    assert (len(some), complete) == (7 + 7 + 1, False)
    assert ("a", "b", "c", "d", "e", "f", "g") in some
    assert ("a", "b", "c", "d", "e", "f") in some
    assert ("g",) in some


def test_weights_of_a_subset() -> None:
    own = np.array([0.5, 0.5, 0], np.float32)
    assert subset_weights(own, ["a", "b", "c"], ("a", "c")).tolist() == [0.5, 0, 0]
    # A member that tuning gave no weight still can be measured alone.
    assert subset_weights(own, ["a", "b", "c"], ("c",)).tolist() == [0, 0, 1]


def test_own_bytes_count_neither_as_hits_nor_as_relevant(two_members: Retriever) -> None:
    asked = queries(
        np.concatenate([angles(0), angles(0)], axis=1), "cat", digests=(two_members.gallery.sha256(0),)
    )  # fmt: skip
    judge = Judge.of(two_members.gallery, asked)
    assert (judge.own, judge.totals) == (((0,),), (1,))
    (answer,) = ask(two_members, asked, judge)
    assert answer.rows.tolist() == [1, 2, 3]
    assert answer.relevant.tolist() == [False, True, False]


def answer(total: int, *rows: int) -> Answer:
    return Answer(np.array(rows, np.int64), np.zeros(len(rows), np.float32), np.zeros(len(rows), bool), total, None)


def test_confusions_by_hand() -> None:
    pictures = gallery("ant", "bee", "cow", None)
    answers = [answer(1, 0), answer(1, 1, 0), answer(1, 1), answer(1, 2), answer(1, 3), answer(0, 1), answer(1)]
    labels = ["ant", "ant", "ant", "bee", "cow", "elk", "cow"]
    table = confusions(pictures, answers, labels)
    assert [(p.true, p.found, p.queries) for p in table.pairs] == [
        ("ant", "bee", (1, 2)),
        ("bee", "cow", (3,)),
        ("cow", NO_LABEL, (4,)),
    ]
    assert table.pairs[0].share == pytest.approx(2 / 3)
    assert table.labels == ("ant", "bee", "cow")
    assert table.columns == ("ant", "bee", "cow", NO_LABEL)
    assert table.matrix.tolist() == [[1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_of_many_classes_the_most_confused_are_shown() -> None:
    pictures = gallery("ant", "bee", "cow", "doe")
    answers = [answer(1, 1), answer(1, 1), answer(1, 2), answer(1, 3), answer(1, 3)]
    table = confusions(pictures, answers, ["ant", "ant", "cow", "doe", "ant"], most=2)
    assert (table.labels, table.columns, table.classes) == (("ant", "bee"), ("ant", "bee", OTHERS), 4)
    assert table.matrix.tolist() == [[0, 2, 1], [0, 0, 0]]


def test_near_duplicates_by_hand() -> None:
    pictures = gallery("a", "a", "a", phashes=(0b1111, 0b0, 0xFF00))
    asked = queries(
        angles(0, 0, 0), "a", "a", "a", digests=(f"{1:064x}", "e" * 64, "f" * 64), phashes=(0b0, 0b1, 0xFFFF0000)
    )
    plain = Projection(np.zeros(2, np.float32), None, None)
    # The ensemble sees the first two at 0 and 10 degrees (cosine 0.985), the third at a right angle to both.
    vectors = angles(0, 10, 90).astype(np.float16)
    appearance = Appearance([plain], np.ones(1, np.float32), vectors.__getitem__)
    found = find_near_duplicates(pictures, appearance, asked, Judge.of(pictures, asked))
    # The first has its own bytes as image 1, so image 0 (four bits away) is its near duplicate; the third is far.
    assert [(pair.query, pair.row, pair.bits, pair.images) for pair in found] == [(0, 0, 4, 1), (1, 1, 1, 2)]
    # An image of the gallery may ask by an average, here one that points away, and still looks as it does.
    averaged = queries(angles(180), "a", digests=(f"{1:064x}",), phashes=(0b0,))
    assert len(find_near_duplicates(pictures, appearance, averaged, Judge.of(pictures, averaged))) == 1
    # With close hashes alone, but seen as something else, there is none.
    other = queries(angles(80), "a", digests=("e" * 64,), phashes=(0b1,))
    assert find_near_duplicates(pictures, appearance, other, Judge.of(pictures, other)) == []
