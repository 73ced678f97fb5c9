"""Evaluation that cannot mislead: the gallery asked in folds, and classes that it does not have."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from images import pattern

from cbir.client.cli.program import main
from cbir.core.artifacts import IndexStore
from cbir.core.ensemble import load_ensemble
from cbir.core.errors import SourceError
from cbir.core.search import Retriever
from cbir.core.vote import SearchSpec, VoteSettings
from cbir.indexer.build import FitSettings, RunSettings, build
from cbir.indexer.evaluate import evaluate, fit_folds, gallery_queries, name_classes, source_queries
from cbir.indexer.evaluate.answers import ask
from cbir.indexer.evaluate.cross_fitted import CrossFitted, judge_of
from cbir.indexer.sources import open_sources

SETTINGS = RunSettings(device="cpu", runtime="torch", batch=16, workers=2)


@pytest.fixture(scope="module")
def glrt(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """An ensemble whose metrics are learnt from labels; with more components than images, they learn them by heart."""
    path = tmp_path_factory.mktemp("glrt") / "glrt.toml"
    path.write_text(tiny.read_text().replace('metric = "pca"', 'metric = "glrt"').replace("dim = 16", "dim = 64"))
    return path


@pytest.fixture(scope="module")
def arbitrary(tmp_path_factory: pytest.TempPathFactory, glrt: Path) -> Path:
    """An index of 62 pictures with labels that say nothing; two are the same bytes, one is alone in its class.

    Its label vote counts, with linear heads, and its vectors are averaged.
    """
    folder = tmp_path_factory.mktemp("arbitrary")
    classes = np.random.default_rng(0).permutation(np.repeat(np.arange(6), 10))
    for i, code in enumerate(classes):
        place = folder / "gallery" / f"c{code}"
        place.mkdir(parents=True, exist_ok=True)
        # One kind of picture, whose numbers differ.
        pattern(1, i).save(place / f"{i:03d}.png")
    (folder / "gallery" / "c0" / "again.png").write_bytes(next((folder / "gallery" / "c0").iterdir()).read_bytes())
    (folder / "gallery" / "only").mkdir()
    pattern(2, 0).save(folder / "gallery" / "only" / "one.png")
    ensemble = load_ensemble(glrt)
    build(open_sources([str(folder / "gallery")]), folder / "index", ensemble, SETTINGS, FitSettings(label_share=1.0))
    return folder / "index"


def run_eval(capsys: pytest.CaptureFixture, index: Path, *arguments: str) -> tuple[dict, str]:
    assert main(["eval", str(index), *arguments, "--json", "--device", "cpu", "--runtime", "torch"]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def test_labels_that_say_nothing_are_found_by_nobody(arbitrary: Path, capsys: pytest.CaptureFixture) -> None:
    version = IndexStore(arbitrary).open()
    retriever = Retriever.load(version, "cpu")
    by_heart = evaluate(arbitrary, version, retriever, gallery_queries(retriever), "itself", own=True)
    assert by_heart.ensemble.map_at_10 > 0.6, "the images helped to place themselves"
    document, said = run_eval(capsys, arbitrary, "--leave-one-out")
    # A sixth of what is there is of the right class.
    for figures in (document, document["rank_fusion"], *document["members"].values()):
        assert figures["map@10"] < 0.35
    assert document["cross_fitted"] is True
    assert "five folds" in document["conventions"]["folds"]
    assert "five folds" in document["conventions"]["queries"]
    assert "caution" not in said
    # The one without its like cannot be asked for, but it counts as that.
    assert (document["queries"], document["queries_without_relevant"]) == (61, 1)


def test_a_fold_answers_for_its_images_from_all_others(arbitrary: Path) -> None:
    version = IndexStore(arbitrary).open()
    retriever = Retriever.load(version, "cpu")
    folds = fit_folds(version, retriever, arbitrary / "cache", SETTINGS)
    assert isinstance(folds, CrossFitted)
    queries = folds.queries(gallery_queries(retriever))
    judge = judge_of(folds, queries)
    gallery = retriever.gallery
    fold_of = np.full(len(gallery), -1)
    for name, vector in zip(queries.ids, queries.vectors, strict=True):
        fold_of[gallery.row(name)] = int(vector[-1])
    (only,) = [row for row, name in enumerate(gallery.ids) if gallery.label(row) == "only"]
    assert fold_of[only] == -1
    answers = ask(folds, queries, judge, deepest=10)
    for place, (name, answer) in enumerate(zip(queries.ids, answers, strict=True)):
        row = gallery.row(name)
        if row == only:
            assert (len(answer.rows), answer.total) == (0, 0)
            continue
        assert len(answer.rows) == 10
        others = fold_of != fold_of[row]
        assert others[answer.rows].all(), "an image of the query's own fold was found"
        assert answer.total == judge.totals[place]
        assert answer.total == ((gallery.label_codes == gallery.label_codes[row]) & others).sum()
        own = gallery.rows_with_sha256(gallery.sha256(row))
        assert not set(own) & set(answer.rows.tolist())
    # The same bytes are in the same fold.
    (first, second) = next(
        rows for r in range(len(gallery)) if len(rows := gallery.rows_with_sha256(gallery.sha256(r))) == 2
    )
    assert fold_of[first] == fold_of[second]
    # What is excluded and masked is so in the numbers of the whole gallery.
    query = queries.vectors[:1]
    best = folds.search(query, [SearchSpec(3)])[0].rows
    mask = np.ones(len(gallery), bool)
    mask[best[1]] = False
    found = folds.search(query, [SearchSpec(10, mask=mask, exclude_rows=(int(best[0]),))])[0].rows
    assert found[0] == best[2]
    assert not {int(best[0]), int(best[1])} & set(found.tolist())


def test_where_labels_taught_nothing_each_image_is_asked_of_all_others(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path
) -> None:
    ensemble = load_ensemble(tiny)
    members = tuple(replace(member, metric="pca") for member in ensemble.members)
    build(
        open_sources([str(pictures(15))]), tmp_path / "index", replace(ensemble, members=members), SETTINGS,
        FitSettings(),
    )  # fmt: skip
    version = IndexStore(tmp_path / "index").open()
    retriever = Retriever.load(version, "cpu")
    # Heads are learnt wherever there are labels: without them nothing is.
    version.heads = lambda: {}  # type: ignore[method-assign]
    assert fit_folds(version, retriever, tmp_path / "index" / "cache", SETTINGS) is None
    version.__dict__["vote"] = VoteSettings(version.vote.weights, augmentation_neighbours=3, tuned=True)
    folds = fit_folds(version, retriever, tmp_path / "index" / "cache", SETTINGS)
    assert folds is not None
    queries = folds.queries(gallery_queries(retriever))
    report = evaluate(tmp_path / "index", version, folds, queries, "itself", own=True)
    assert report.caution is not None
    assert report.caution.startswith("the tuned settings come from these very images")
    # Without raw embeddings the folds cannot be learnt: then the figures come with a warning, as they are too good.
    assert fit_folds(version, retriever, tmp_path / "nowhere", SETTINGS) is None
    plain = evaluate(tmp_path / "index", version, retriever, gallery_queries(retriever), "itself", own=True)
    assert plain.caution is not None
    assert "augmented vectors, the tuned settings come" in plain.caution


def test_classes_that_the_gallery_does_not_have_are_named(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture
) -> None:
    index = tmp_path / "index"
    build(open_sources([str(pictures(5))]), index, load_ensemble(tiny), SETTINGS, FitSettings())
    queries = pictures(2, "queries")
    for number in range(12):
        folder = tmp_path / "queries" / f"new<b>{number:02d}"
        folder.mkdir()
        for i in range(2 if number == 3 else 1):
            pattern(number % 4, 200 + 10 * number + i).save(folder / f"{i}.png")
    page = tmp_path / "page"
    document, said = run_eval(capsys, index, "--queries", str(queries), "--report", str(page))
    unknown = document["unknown_classes"]
    assert (unknown["count"], unknown["queries"]) == (12, 13)
    assert unknown["first"] == [f"new<b>{number:02d}" for number in range(10)]
    assert "13 queries are of classes that the gallery does not have (12): 'new<b>00', " in said
    assert "'new<b>09' and 2 more" in said
    assert "new<b>10" not in said
    html = next(page.glob("*.html")).read_text()
    assert "12 classes of the queries (13 queries) are not in the gallery" in html
    assert "new&lt;b&gt;09 and 2 more" in html
    known, quiet = run_eval(capsys, index, "--queries", str(pictures(2, "known")))
    assert known["unknown_classes"] == {"count": 0, "queries": 0, "first": []}
    assert "does not have" not in quiet


def test_names_are_cut_after_ten() -> None:
    assert name_classes(["a"]) == "'a'"
    assert name_classes(map(str, range(10))).endswith("'8', '9'")
    assert name_classes(map(str, range(11))).endswith("'9' and 1 more")


def test_queries_of_unknown_classes_only_are_refused_by_name(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path
) -> None:
    index = tmp_path / "index"
    build(open_sources([str(pictures(5))]), index, load_ensemble(tiny), SETTINGS, FitSettings())
    (tmp_path / "strangers" / "gnu").mkdir(parents=True)
    pattern(0, 300).save(tmp_path / "strangers" / "gnu" / "a.png")
    (tmp_path / "strangers" / "emu").mkdir()
    pattern(1, 301).save(tmp_path / "strangers" / "emu" / "a.png")
    version = IndexStore(index).open()
    retriever = Retriever.load(version, "cpu")
    queries = source_queries(version, retriever, open_sources([str(tmp_path / "strangers")]), index / "cache", SETTINGS)
    with pytest.raises(SourceError, match="it has none of 'emu', 'gnu'"):
        evaluate(index, version, retriever, queries, "strangers")
