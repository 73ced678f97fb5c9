"""Tuning: folds that keep queries honest, the objective by hand, the search, and what is published."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plain_votes import mixed_probabilities, neighbour_probabilities
from precision import f32
from small_index import reseal

from cbir.client.cli.program import main
from cbir.core.artifacts import IndexStore
from cbir.core.ensemble import MemberSpec, load_ensemble
from cbir.core.errors import ArtifactError
from cbir.core.metric import normalise
from cbir.core.search import Retriever
from cbir.core.vote import Heads, SearchSpec, fit_head
from cbir.indexer.build import FitSettings, RunSettings, build
from cbir.indexer.evaluate.cross_fit import MemberSpace, Sharpening, cross_splits, member_space
from cbir.indexer.sources import open_sources
from cbir.indexer.tune import SearchBudget, tune, vote_choice
from cbir.indexer.tune.objective import Trial, average_precisions, top_hits
from cbir.indexer.tune.score_table import ScoreTable, score_table
from cbir.indexer.tune.vote_choice import VoteChoice
from cbir.indexer.tune.vote_search import search_vote

SETTINGS = RunSettings(device="cpu", runtime="torch")


def table_of(
    similarities: list[list[list[float]]],
    candidate_codes: list[list[int]],
    codes: list[int],
    names: dict[int, list[list[float]]] | None = None,
) -> ScoreTable:
    """From a list of members' (Q, C) similarities, and what (Q, 2) the class names say by member number."""
    found = np.array(candidate_codes, np.int32)
    totals = np.array([row.count(code) for row, code in zip(candidate_codes, codes, strict=True)])
    rows = np.tile(np.arange(found.shape[1], dtype=np.int32), (len(found), 1))
    return ScoreTable(
        tuple((m, 8) for m in range(len(similarities))), np.stack(np.array(similarities, np.float32), axis=1),
        np.zeros((len(found), 0, 0), np.float32),
        {m: np.array(said, np.float32) for m, said in (names or {}).items()}, rows, found,
        np.full(len(found), found.shape[1], np.int32), np.array(codes, np.int32), totals, np.arange(len(codes)), 2,
    )  # fmt: skip


def precisions(table: ScoreTable, trial: Trial) -> np.ndarray:
    """AP@10 under one vote."""
    return average_precisions(table, [trial])[0]


def hits(table: ScoreTable, trial: Trial) -> tuple[np.ndarray, np.ndarray]:
    """Scores and relevance of the hits of a table with one query, as many as there are."""
    scores, relevant = top_hits(table, trial)
    assert len(scores) == 1
    assert not np.isfinite(scores[0, table.counts[0] :]).any()
    assert not relevant[0, table.counts[0] :].any()
    return scores[0, : table.counts[0]], relevant[0, : table.counts[0]]


def blobs(noise: float, seed: int, classes: int = 8, each: int = 12, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(classes), each)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    return normalise((centres[codes] + noise * rng.normal(size=(len(codes), width))).astype(np.float32)), codes


def spaces_of(*raws: np.ndarray) -> list[MemberSpace]:
    members = [MemberSpec(f"m{i}", "timm", "resnet18", metric="pca") for i in range(len(raws))]
    return [member_space(member, raw, len(raw), 8, 8) for member, raw in zip(members, raws, strict=True)]


def test_average_precision_of_a_vote_by_hand() -> None:
    # One member likes candidates 0, 1, 2 in this order, the other 2, 1, 0, three times as surely.
    table = table_of([[[0.3, 0.2, 0.1]], [[0.1, 0.4, 0.7]]], [[0, 1, 0]], [0])
    first, second = Trial((1.0, 0.0), (8, 8)), Trial((1.0, 1.0), (8, 8))
    assert precisions(table, first) == pytest.approx([(1 + 2 / 3) / 2])
    # Means 0.2, 0.3, 0.4: order 2, 1, 0.
    assert precisions(table, second) == pytest.approx([(1 + 2 / 3) / 2])
    assert hits(table, second)[0].tolist() == pytest.approx([0.4, 0.3, 0.2])
    # With labels: two neighbours vote, 0.4 for class 0 and 0.3 for class 1, at T 0.1: odds e : 1.
    voted = replace(second, neighbours=2, temperature=0.1, label_share=1.0)
    likely = np.e / (np.e + 1)
    scores, relevant = hits(table, voted)
    assert scores.tolist() == pytest.approx([0.4 + likely, 0.2 + likely, 0.3 + 1 - likely], abs=f32(256))
    assert relevant.tolist() == [True, True, False]
    assert precisions(table, voted) == pytest.approx([1.0])


def test_names_vote_by_weight_and_trust_by_hand() -> None:
    # Trusted by a half, the first member's names say 0.8 and 0.2; fully trusted, the second's say 0.1 and 0.9.
    said = {0: [[0.4, 0.1]], 1: [[0.1, 0.9]]}
    table = table_of([[[0.3, 0.2]], [[0.3, 0.2]], [[0.3, 0.2]]], [[0, 1]], [1], said)
    trial = Trial((1.0, 2.0, 4.0), (8, 8, 8), neighbours=2, temperature=0.1, label_share=1.0, text_share=0.8)
    # Weights times trust are 0.5 and 2: the names sum to (0.5 * 0.5 + 2 * 1) / 2.5 = 0.9, of which the share is 0.8.
    names = np.array([(0.5 * 0.4 + 2 * 0.1) / 2.5, (0.5 * 0.1 + 2 * 0.9) / 2.5])
    near = np.array([np.e, 1]) / (np.e + 1)
    want = 0.8 * names + (1 - 0.8 * 0.9) * near + [0.3, 0.2]
    assert want.argmax() == 1
    assert hits(table, trial)[0].tolist() == pytest.approx([want[1], want[0]], abs=f32(32))
    mute = replace(table, names={})
    near_alone = sorted((near[0] + 0.3, near[1] + 0.2), reverse=True)
    for without in (hits(mute, trial), hits(table, replace(trial, text_share=0.0))):
        assert without[0].tolist() == pytest.approx(near_alone, abs=f32(32))


def test_names_get_the_share_that_they_deserve() -> None:
    # Neighbours that tell little, beside names that are always right, or that were drawn at random.
    raw, codes = blobs(2.5, 5, each=20)
    splits = cross_splits(codes, [str(i) for i in range(len(codes))])
    start = Trial((1.0,), (8,), label_share=1.0, text_share=0.25)
    right = (0.9 * np.eye(8)[codes]).astype(np.float32)
    drawn = (0.9 * np.eye(8)[np.random.default_rng(6).integers(0, 8, len(codes))]).astype(np.float32)
    shares, values = {}, {}
    for name, said in (("right", right), ("drawn", drawn)):
        table = score_table(spaces_of(raw), [(8,)], codes, splits, names={0: said})
        best = search_vote(table, start, [(8,)], SearchBudget(150))
        shares[name], values[name] = best.text_share, precisions(table, best).mean()
    assert shares["right"] > 0.5 > shares["drawn"]
    assert values["right"] > 0.8 > values["drawn"]


def test_ties_break_by_row_and_the_scale_of_weights_does_not_matter() -> None:
    table = table_of([[[0.5, 0.5, 0.5]], [[0.5, 0.5, 0.5]]], [[1, 0, 0]], [0])
    assert precisions(table, Trial((1, 2), (8, 8))) == pytest.approx([(1 / 2 + 2 / 3) / 2])
    mixed = table_of([[[0.3, 0.2, 0.1]], [[0.1, 0.2, 0.9]]], [[1, 0, 0]], [0])
    one, ten = (hits(mixed, Trial(w, (8, 8)))[0] for w in ((0.3, 0.7), (3.0, 7.0)))
    np.testing.assert_allclose(one, ten, rtol=f32(32))


def test_no_fold_sees_its_own_labels_and_the_same_bytes_stay_together() -> None:
    codes = np.array([0, 0, 0, 0, 1, 1, 1, 1, -1, -1])
    groups = ["a", "a", "b", "c", "d", "e", "f", "g", "h", "i"]
    splits = cross_splits(codes, groups, folds=3)
    asked = np.concatenate([split.queries for split in splits])
    assert sorted(asked.tolist()) == list(range(8)), "every labelled image asks once, the others never"
    for split in splits:
        assert not set(split.queries) & set(split.gallery)
        assert not set(split.queries) & set(split.teachers)
        assert {8, 9} <= set(split.gallery.tolist())
        assert (codes[split.teachers] >= 0).all()
    (with_copies,) = [split for split in splits if 0 in split.queries]
    assert 1 in with_copies.queries


def test_the_objective_agrees_with_the_retriever() -> None:
    raw, codes = blobs(0.9, 0, classes=4, each=10)
    table = score_table(spaces_of(raw), [(8,)], codes, cross_splits(codes, [str(i) for i in range(len(codes))]))
    trial = Trial((1.0,), (8,), neighbours=5, temperature=0.1, label_share=0.7, head_share=0.4, head_temperature=0.2)
    scores, _ = top_hits(table, trial)
    split = cross_splits(codes, [str(i) for i in range(len(codes))])[0]
    z = spaces_of(raw)[0].unit(8)
    query, gallery = z[split.queries[0]], z[split.gallery]
    fused = gallery @ query
    head = fit_head(z[split.teachers], codes[split.teachers], 4)
    heads = Heads([head], (8,)).probabilities(query[None], np.ones((1, 1), np.float32), 0.2)
    near = neighbour_probabilities(fused, codes[split.gallery], 5, 0.1, 4)
    label = mixed_probabilities({"h": heads[0], "n": near}, {"h": 0.4, "n": 0.6})
    assert label is not None
    want = np.sort(fused + 0.7 * label[codes[split.gallery]])[::-1][:10]
    np.testing.assert_allclose(scores[0], want, atol=f32(2048))


def test_a_member_of_noise_loses_its_vote_and_a_good_pair_beats_equal_weights_and_each_alone() -> None:
    clean, codes = blobs(1.1, 1, each=40)
    other, _ = blobs(1.6, 2, each=40)
    noise = normalise(np.random.default_rng(3).normal(size=clean.shape).astype(np.float32))
    groups = [str(i) for i in range(len(codes))]
    dims = [(8,)] * 3
    table = score_table(spaces_of(clean, other, noise), dims, codes, cross_splits(codes, groups))
    best = search_vote(table, Trial((1.0, 1.0, 1.0), (8, 8, 8)), dims, SearchBudget(300))
    assert best.weights[2] == 0
    value = precisions(table, best).mean()
    for weights in ((1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)):
        assert value > precisions(table, replace(best, weights=weights)).mean()


def test_sharpening_helps_queries_near_their_kind() -> None:
    raw, codes = blobs(0.8, 4, each=20)
    splits = cross_splits(codes, [str(i) for i in range(len(codes))])
    plain = score_table(spaces_of(raw), [(8,)], codes, splits)
    sharp = score_table(spaces_of(raw), [(8,)], codes, splits, sharpening=Sharpening(5, 3.0, 5, 3.0))
    trial = Trial((1.0,), (8,))
    assert precisions(sharp, trial).mean() > precisions(plain, trial).mean() + 0.02


@pytest.fixture
def indexed(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> Path:
    build(open_sources([str(pictures(15))]), tmp_path / "index", load_ensemble(tiny), SETTINGS, FitSettings())
    return tmp_path / "index"


def test_a_gain_is_published_and_used_and_kept_when_the_gallery_grows(
    indexed: Path, pictures: Callable[..., Path], tiny: Path
) -> None:
    before = IndexStore(indexed).open()
    report = tune(indexed, settings=SETTINGS, budget=SearchBudget(60))
    assert report.queries == 60
    assert report.gain is not None
    after = IndexStore(indexed).open()
    if report.version is None:
        assert report.gain[0] <= 0
        assert after.name == before.name
        return
    assert after.name == report.version
    assert after.vote == report.vote
    assert after.vote.tuned
    assert set(after.heads()) == {m.name for m in after.manifest.ensemble.members}
    build(open_sources([str(pictures(16))]), indexed, load_ensemble(tiny), SETTINGS, FitSettings())
    grown = IndexStore(indexed).open()
    assert grown.name != after.name
    assert grown.vote == after.vote
    build(
        open_sources([str(pictures(16))]), indexed, load_ensemble(tiny), SETTINGS, FitSettings(keep_tuning=False)
    )  # fmt: skip
    assert not IndexStore(indexed).open().vote.tuned
    # Tuned again, it is forgotten again, although no image and no setting of the run differs.
    assert tune(indexed, settings=SETTINGS, budget=SearchBudget(30)).version is not None
    assert IndexStore(indexed).open().vote.tuned
    build(
        open_sources([str(pictures(16))]), indexed, load_ensemble(tiny), SETTINGS, FitSettings(keep_tuning=False)
    )  # fmt: skip
    assert not IndexStore(indexed).open().vote.tuned


def test_a_loss_is_not_published(indexed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    # A search whose choice serves other queries badly, in whole and in part.
    monkeypatch.setattr(vote_choice, "search_vote", lambda table, start, *rest: replace(start, temperature=0.5))
    monkeypatch.setattr(VoteChoice, "_held_out", staticmethod(lambda table, halves: np.zeros(len(table))))
    live = IndexStore(indexed).current()
    assert main(["tune", str(indexed), "--json", "--device", "cpu", "--runtime", "torch"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert (document["published"], document["rejected"], document["taken"]) == (False, True, None)
    assert document["gain"]["mean"] < 0
    assert set(document["steps"]) == {"expansion", "weights", "label vote"}
    assert "nothing was published" in printed.err
    assert IndexStore(indexed).current() == live
    assert main(["tune", str(indexed), "--device", "cpu", "--runtime", "torch"]) == 0
    table = capsys.readouterr().out
    # What lost is never shown like what is in use.
    assert "REJECTED" in table
    assert table.index("REJECTED") < table.index("weight")
    assert "label vote alone" in table


@pytest.mark.parametrize("step", ["expansion", "weights", "label vote"])
def test_a_part_that_is_a_gain_is_taken_where_the_whole_is_none(
    step: str, indexed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    live = IndexStore(indexed).open().vote

    def search(table: ScoreTable, start: Trial, *rest: object) -> Trial:
        return replace(start, temperature=0.3, weights=(3.0, 1.0))

    def held_out(table: ScoreTable, halves: vote_choice.Halves) -> np.ndarray:
        trial = halves[0][1]
        changed = {
            "expansion": len(halves) == 1,
            "weights": trial.weights == (3.0, 1.0) and trial.temperature != 0.3,
            "label vote": trial.weights != (3.0, 1.0) and trial.temperature == 0.3,
        }
        return np.ones(len(table)) if changed[step] else np.zeros(len(table))

    monkeypatch.setattr(vote_choice, "search_vote", search)
    monkeypatch.setattr(VoteChoice, "_held_out", staticmethod(held_out))
    assert main(["tune", str(indexed), "--json", "--device", "cpu", "--runtime", "torch"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert (document["taken"], document["published"], document["rejected"]) == (step, True, False)
    assert document["whole"]["gain"]["mean"] < 0 < document["gain"]["low"]
    assert f"{step} alone" in printed.err
    vote = IndexStore(indexed).open().vote
    total = sum(live.weights.values())
    equal = pytest.approx({name: weight / total for name, weight in live.weights.items()})
    assert (vote.expansion_neighbours > 0) == (step == "expansion")
    assert (vote.temperature == 0.3) == (step == "label vote")
    assert list(vote.weights.values()) == [0.75, 0.25] if step == "weights" else vote.weights == equal
    assert vote.calibration is not None


def test_a_vote_that_stays_is_calibrated_once(
    indexed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(vote_choice, "search_vote", lambda table, start, *rest: replace(start, temperature=0.3))
    monkeypatch.setattr(VoteChoice, "_held_out", staticmethod(lambda table, halves: np.ones(len(table))))
    first = tune(indexed, settings=SETTINGS)
    store = IndexStore(indexed)
    tuned = store.open()
    assert tuned.name == first.version
    # As a version before calibration had it.
    vote = replace(tuned.vote, calibration=None)
    path = tuned.path / "vote.json"
    path.write_text(json.dumps(vote.to_json()))
    facts = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
    reseal(store, lambda manifest: {**manifest, "files": {**manifest["files"], "vote.json": facts}})
    second = tune(indexed, settings=SETTINGS)
    assert store.open().name == second.version != tuned.name
    assert second.gain == (0, 0, 0)
    assert store.open().vote == replace(vote, calibration=first.vote.calibration)
    assert first.vote.calibration is not None
    capsys.readouterr()
    assert main(["tune", str(indexed), "--device", "cpu", "--runtime", "torch"]) == 0
    assert "no other vote is better\n" in capsys.readouterr().err
    assert store.current() == second.version


def test_without_labels_vectors_are_sharpened(indexed: Path) -> None:
    report = tune(indexed, settings=SETTINGS, use_labels=False)
    version = IndexStore(indexed).open()
    assert (report.queries, report.version) == (0, version.name)
    assert version.vote.augmentation_neighbours > 1
    assert version.vote.expansion_neighbours > 0
    retriever = Retriever.load(version, "cpu")
    # Expansion never lets an image that is left out pull the query.
    stored = retriever.vectors_of([0])
    hits = retriever.search(stored, [SearchSpec(exclude_rows=(0,))])[0]
    assert 0 not in hits.rows
    assert len(hits.rows) == 10


def test_tuning_needs_the_raw_embeddings(indexed: Path) -> None:
    import shutil

    shutil.rmtree(indexed / "cache")
    with pytest.raises(ArtifactError, match="no longer in its cache"):
        tune(indexed, settings=SETTINGS)


def test_given_queries_judge(indexed: Path, pictures: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    queries = pictures(22, "other")
    assert main(
        ["tune", str(indexed), "--queries", str(queries), "--trials", "20", "--json", "--device", "cpu",
         "--runtime", "torch"]
    ) == 0  # fmt: skip
    document = json.loads(capsys.readouterr().out)
    # The first 15 of each class are in the gallery and so do not ask.
    assert document["queries"] == 28
    assert document["query_source"] == "given query images"


def test_ctrl_c_leaves_the_index_as_it_was(indexed: Path) -> None:
    version = IndexStore(indexed).open()

    def contents() -> dict[str, bytes]:
        # The cache may be tidied, and the lock's file is empty in any case.
        return {
            str(path.relative_to(indexed)): path.read_bytes()
            for path in sorted(indexed.rglob("*"))
            if path.is_file() and "cache" not in path.relative_to(indexed).parts
        }

    before = contents()
    # Whoever runs the tests in the background has the signal ignored, which children inherit.
    heeding = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program = heeding + "from cbir.client.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "tune", str(indexed), "--trials", "100000000"]
    with subprocess.Popen(
        [*command, "--device", "cpu", "--runtime", "torch"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("tune"):
                # Votes are being tried.
                process.send_signal(signal.SIGINT)
                break
        said.append(process.stderr.read())
        assert process.wait(60) == 130, said
    assert "nothing was published" in said[-1]
    assert "Traceback" not in "".join(said)
    assert contents() == before
    assert IndexStore(indexed).open().name == version.name
