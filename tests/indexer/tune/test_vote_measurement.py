"""Compiled loops of tuning against plain ones: candidates, votes, and what is learnt from all folds but one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from precision import f32

from cbir.core.ensemble import MemberSpec
from cbir.core.metric import fit_glrt, neighbour_metrics, normalise
from cbir.indexer.build import Progress
from cbir.indexer.evaluate.cross_fit import cross_splits, member_space
from cbir.indexer.evaluate.fold_metrics import FoldMetrics
from cbir.indexer.evaluate.label_moments import LabelMoments
from cbir.indexer.tune.candidate_pool import (
    ALONE,
    EACH,
    TOGETHER,
    find_candidates,
    most_candidates,
    products,
    rows_by_class,
)
from cbir.indexer.tune.objective import Trial, average_precisions, top_hits
from cbir.indexer.tune.score_table import ScoreTable
from cbir.indexer.tune.time_left import TimeLeft


def drawn_table(seed: int, queries: int = 12, width: int = 30, classes: int = 5) -> ScoreTable:
    """Two members, of which the first has two dimensions; coarse scores, so that many are equal."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(4, width + 1, queries).astype(np.int32)
    similarities = (rng.integers(0, 8, (queries, 3, width)) / 8).astype(np.float32)
    rows = np.argsort(rng.random((queries, 90)), axis=1)[:, :width].astype(np.int32)
    said = rng.dirichlet(np.ones(classes), queries).astype(np.float32)
    return ScoreTable(
        ((0, 8), (0, 4), (1, 8)), similarities, rng.normal(size=(queries, 3, classes)).astype(np.float32),
        {1: 0.6 * said}, rows, rng.integers(-1, classes, (queries, width)).astype(np.int32), counts,
        rng.integers(0, classes, queries).astype(np.int32), rng.integers(1, 20, queries), np.arange(queries), classes,
    )  # fmt: skip


def plainly(table: ScoreTable, trial: Trial, q: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and relevance of one query's hits, step by step in double precision."""
    weights = np.array(trial.weights) / np.sum(trial.weights)
    places = [table.keys.index(key) for key in enumerate(trial.dims)]
    count = table.counts[q]
    codes = table.candidate_codes[q, :count]
    fused = weights @ table.similarities[q, places, :count].astype(np.float64)
    if trial.label_share:
        near = np.zeros(table.classes)
        best = np.argsort(-fused, kind="stable")[: trial.neighbours]
        for place in best[codes[best] >= 0]:
            near[codes[place]] += np.exp((fused[place] - fused.max()) / trial.temperature)
        labelled = near.any()
        likely = near / max(near.sum(), 1e-12)
        if table.heads.size and trial.head_share:
            heads = np.exp(weights @ table.heads[q, places] / trial.head_temperature)
            share = trial.head_share if labelled else 1
            likely = share * heads / heads.sum() + (1 - share) * likely
        if table.names and trial.text_share:
            trusted = [(weights[m] * said[q].sum(), said[q]) for m, said in table.names.items()]
            names = sum(w * said for w, said in trusted) / sum(w for w, _ in trusted)
            likely = trial.text_share * names + (1 - trial.text_share * names.sum()) * likely
            likely /= likely.sum()
        fused = fused + trial.label_share * np.where(codes >= 0, likely[codes], 0)
    # In float32, as equal scores must stay equal.
    fused = fused.astype(np.float32)
    order = np.lexsort((table.candidate_rows[q, :count], -fused.round(5)))[:10]
    return fused[order], codes[order] == table.codes[q]


@pytest.mark.parametrize("seed", range(4))
def test_votes_are_measured_as_step_by_step(seed: int) -> None:
    table = drawn_table(seed)
    trials = [
        Trial((1.0, 3.0), (8, 8)),
        Trial((2.0, 0.0), (4, 8), label_share=0.7, head_share=0.0, neighbours=1),
        # All the neighbours there are, so that it does not matter which of equal ones are taken.
        Trial((1.0, 1.0), (8, 8), 30, 0.2, 1.3, 0.3, 0.2, 0.0),
        Trial((0.5, 1.0), (4, 8), 30, 0.1, 2.0, 0.6, 0.3, 0.5),
    ]
    for part in (table, replace(table, heads=np.zeros((len(table), 0, 0), np.float32), names={})):
        together = average_precisions(part, trials)
        for t, trial in enumerate(trials):
            scores, relevant = top_hits(part, trial)
            for q in range(len(part)):
                if trial.neighbours == 1:
                    continue
                want, right = plainly(part, trial, q)
                np.testing.assert_allclose(scores[q, : len(want)], want, atol=2e-6)
                assert relevant[q, : len(want)].tolist() == right.tolist()
                precision = np.cumsum(right) / np.arange(1, len(right) + 1)
                assert together[t, q] == pytest.approx((precision * right).sum() / min(part.totals[q], 10))
            np.testing.assert_array_equal(average_precisions(part, [trial])[0], together[t])


def test_unlabelled_neighbours_leave_the_word_to_the_heads() -> None:
    table = replace(drawn_table(0), names={})
    table.candidate_codes[:, :] = -1
    table.candidate_codes[:, 0] = 0
    table.similarities[:, :, 0] = -1
    trial = Trial((1.0, 1.0), (8, 8), 2, 0.1, 1.0, 0.1, 0.5)
    scores, _ = top_hits(table, trial)
    heads = table.heads[:, [0, 2]].mean(axis=1) / 0.5
    likely = np.exp(heads[:, 0]) / np.exp(heads).sum(axis=1)
    few = table.counts <= 10
    assert few.any()
    for q in np.flatnonzero(few):
        assert scores[q, table.counts[q] - 1] == pytest.approx(likely[q] - 1, abs=f32(256))


def test_candidates_are_the_best_together_alone_and_of_the_likeliest_classes() -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(-1, 6, 900)
    scores = rng.normal(size=(2, 3, 900)).astype(np.float32)
    share = np.array([0.25, 0.75], np.float32)
    likely = np.array([[0, 3], [5, 1], [2, 2]], np.int32)
    # A class with fewer images than are taken of each.
    codes[np.flatnonzero(codes == 3)[EACH // 2 :]] = -1
    most = most_candidates(2, 1, 900)
    rows, counts = find_candidates(scores, share, likely, rows_by_class(codes, 6), most)
    fused = np.einsum("m,mbn->bn", share, scores)
    for b in range(3):
        wanted = set(np.argsort(-fused[b])[:TOGETHER])
        for m in range(2):
            wanted |= set(np.argsort(-scores[m, b])[:ALONE])
        for code in likely[b]:
            kin = np.flatnonzero(codes == code)
            wanted |= set(kin[np.argsort(-fused[b, kin])[:EACH]])
        found = rows[b, : counts[b]]
        assert set(found.tolist()) == wanted
        assert len(found) == len(wanted) <= most
        assert (np.diff(fused[b, found]) <= 1e-6).all(), "the likeliest come first"
        assert (rows[b, counts[b] :] == -1).all()
    queries, gallery = rng.normal(size=(3, 16)).astype(np.float32), rng.normal(size=(900, 16)).astype(np.float32)
    filled = np.zeros(rows.shape, np.float32)
    products(queries, gallery, rows, counts, filled)
    want = np.take_along_axis(queries @ gallery.T, rows, axis=1)
    np.testing.assert_allclose(filled, np.where(rows >= 0, want, 0), atol=f32(256))


def test_a_small_gallery_is_searched_whole() -> None:
    scores = np.random.default_rng(2).normal(size=(1, 2, 30)).astype(np.float32)
    nobody = rows_by_class(np.full(30, -1), 0)
    rows, counts = find_candidates(scores, np.ones(1, np.float32), np.zeros((2, 0), np.int32), nobody, 30)
    np.testing.assert_array_equal(rows, np.argsort(-scores[0], axis=1))
    assert counts.tolist() == [30, 30]


def labelled(count: int = 240, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors, some without a label and two alone in their classes."""
    rng = np.random.default_rng(3)
    codes = rng.integers(-1, 7, count)
    codes[:2] = 7, 8
    centres = rng.normal(size=(9, width))
    spread = rng.uniform(0.2, 1.5, width)
    return normalise((centres[codes] + spread * rng.normal(size=(count, width)) + 0.3).astype(np.float32)), codes


def test_moments_without_a_fold_are_those_of_the_others() -> None:
    z, codes = labelled()
    teachers = np.flatnonzero(codes >= 0)
    fold = teachers[teachers % 5 == 2]
    others = np.setdiff1d(teachers, fold)
    left = LabelMoments.of(z[teachers], codes[teachers], 9) - LabelMoments.of(z[fold], codes[fold], 9)
    found, want = left.metric(), fit_glrt(z[others], codes[others])
    np.testing.assert_allclose(found.T @ found, want.T @ want, atol=f32(2048))
    lonely = LabelMoments.of(z[:2], codes[:2], 9)
    with pytest.raises(ValueError, match="no class has two images"):
        lonely.metric()


def test_each_split_is_projected_by_what_its_teachers_taught() -> None:
    z, codes = labelled()
    space = member_space(MemberSpec("m", "timm", "resnet18"), z, len(z), 8, 12)
    splits = cross_splits(codes, [str(i) for i in range(len(codes))])
    metrics = FoldMetrics([space], codes, splits)
    for number, split in enumerate(splits):
        vectors = metrics.project([(8, 4)], number)
        for dim in (8, 4):
            metric = fit_glrt(space.unit(dim)[split.teachers], codes[split.teachers])
            want = normalise(space.unit(dim) @ metric.T)
            np.testing.assert_allclose(vectors[0, dim] @ vectors[0, dim][:9].T, want @ want[:9].T, atol=f32(2048))


def test_where_labels_are_few_neighbours_teach_all_splits_alike() -> None:
    z, codes = labelled()
    few = np.where(np.arange(len(codes)) < 12, codes, -1)
    space = member_space(MemberSpec("m", "timm", "resnet18"), z, len(z), 8, 12)
    metrics = FoldMetrics([space], few, cross_splits(few, [str(i) for i in range(len(few))]))
    (metric,) = neighbour_metrics([space.unit(8)])
    want = normalise(space.unit(8) @ metric.T)
    for number in (0, 1):
        np.testing.assert_allclose(metrics.project([(8,)], number)[0, 8], want, atol=f32(256))


def test_classifiers_are_asked_once_and_only_without_labels() -> None:
    z, codes = labelled()
    few = np.where(np.arange(len(codes)) < 12, codes, -1)
    asked: list[int] = []

    def affinity(rows: np.ndarray) -> None:
        asked.append(len(rows))

    plain = member_space(MemberSpec("m", "timm", "resnet18"), z, len(z), 8, 12)
    space = replace(plain, affinity=affinity)
    for labels, expected in ((codes, []), (few, [len(z)])):
        metrics = FoldMetrics([space], labels, cross_splits(labels, [str(i) for i in range(len(labels))]))
        for number in (0, 1, 0):
            metrics.project([(8,)], number)
        assert asked == expected


def test_no_more_queries_than_enough_ask() -> None:
    codes = np.repeat(np.arange(10), 50)
    names = [str(i) for i in range(500)]
    whole, some = cross_splits(codes, names), cross_splits(codes, names, most=250)
    assert [len(split.queries) for split in whole] == [100] * 5
    assert [len(split.queries) for split in some] == [100, 100, 50]
    for one, other in zip(whole, some, strict=False):
        np.testing.assert_array_equal(one.gallery, other.gallery)
        assert set(other.queries) <= set(one.queries)


def test_time_left_goes_by_what_a_table_and_a_vote_took() -> None:
    told: list[Progress] = []
    now = [0.0]
    left = TimeLeft(told.append, trials=100, clock=lambda: now[0])
    table = left.table("score")
    now[0] = 10
    table(5, 5)
    assert told[-1].seconds_left is None, "nothing is known of votes yet"
    votes = left.votes("tune", 60)
    now[0] = 15
    votes(50, 100)
    # One table of ten seconds, and 300 votes less 50, a tenth of a second each.
    assert told[-1].seconds_left == pytest.approx(10 + 250 * 0.1)
    assert (told[-1].stage, told[-1].done, told[-1].total) == ("tune", 50, 100)
    now[0] = 20
    votes(100, 100)
    half = left.votes("check 1 of 2", 30)
    now[0] = 25
    half(100, 100)
    # Votes on half of the queries count half: 150 whole ones in 15 seconds, 150 to come.
    assert told[-1].seconds_left == pytest.approx(10 + 150 * 0.1)
