"""The report: its figures are those of the JSON, it is one safe file, and no gallery is too odd for it."""

from __future__ import annotations

import argparse
import base64
import csv
import dataclasses
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import pattern
from PIL import Image
from precision import f32

from cbir.core.artifacts import IndexStore
from cbir.core.ensemble import load_ensemble
from cbir.core.errors import ConfigurationError, SourceError
from cbir.core.search import Retriever
from cbir.core.vote import Curve
from cbir.indexer.build import FitSettings, RunSettings, build
from cbir.indexer.commands import eval as eval_command
from cbir.indexer.evaluate import evaluate, examine, gallery_queries, source_queries, write_report
from cbir.indexer.evaluate.recipe_steps import Step
from cbir.indexer.evaluate.report.findings import Findings
from cbir.indexer.sources import open_sources

SETTINGS = RunSettings(device="cpu", runtime="torch", batch=16, workers=2)
#: Labels that want out of their cell, of the chart's font, of its mathematics, and of its frame.
HOSTILE = (
    "<script>alert('x')</script>",
    '"><img src=x onerror="y"> & \'z\'',
    "L" * 200,
    "$x_{ \N{CJK UNIFIED IDEOGRAPH-6F22}",
)


class Page(HTMLParser):
    """The elements, attributes and table rows of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self._cell: list[str] | None = None
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.extend(attrs)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.rows[-1].append("".join(self._cell).strip())
            self._cell = None

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._cell is not None:
            self._cell.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def row(self, *start: str) -> list[str]:
        """The first row that starts so, without empty cells."""
        filled = ([cell for cell in row if cell] for row in self.rows)
        return next(row for row in filled if tuple(row[: len(start)]) == start)


def report(
    index: Path,
    folder: Path,
    queries: str | None = None,
    cache: Path | None = None,
    calibration: Curve | None = None,
) -> tuple[Findings, dict[str, Any], Page]:
    version = IndexStore(index).open()
    if calibration:
        version.__dict__["vote"] = dataclasses.replace(version.vote, calibration=calibration)
    retriever = Retriever.load(version, "cpu")
    if queries is None:
        asked = gallery_queries(retriever)
    else:
        asked = source_queries(version, retriever, open_sources([queries]), index / "cache", SETTINGS)
    evaluation = evaluate(index, version, retriever, asked, queries or "itself", own=queries is None)
    findings = examine(version, retriever, asked, evaluation, cache or index / "cache", SETTINGS)
    path = write_report(findings, folder)
    return findings, json.loads((folder / "report.json").read_text()), Page(path)


def manifest(path: Path, seeds: range) -> Path:
    """Pictures of the four classes, and a table that gives them hostile labels."""
    path.mkdir(parents=True)
    with (path / "images.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        for kind, label in enumerate(HOSTILE):
            for seed in seeds:
                pattern(kind, seed).save(path / f"{kind}-{seed}.png")
                table.writerow([f"{kind}-{seed}.png", label])
    return path / "images.csv"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> tuple[Findings, dict[str, Any], Page, Path]:
    """The report on 60 images and 12 queries with hostile labels; one query is nearly a gallery image."""
    folder = tmp_path_factory.mktemp("hostile")
    gallery, queries = manifest(folder / "gallery", range(15)), manifest(folder / "queries", range(100, 103))
    with Image.open(folder / "gallery/0-0.png") as twin:
        twin.resize((50, 50)).save(folder / "queries/0-100.png")
    fit = FitSettings(label_share=1.0)
    build(open_sources([str(gallery)]), folder / "index", load_ensemble(tiny), SETTINGS, fit)
    return *report(folder / "index", folder / "report", str(queries)), folder


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def test_the_page_shows_the_figures_of_the_json(hostile: tuple[Findings, dict[str, Any], Page, Path]) -> None:
    _, document, page, _ = hostile
    measures = ("p@10", "recall@10", "cmc@1", "map@r", "macro_map@10")
    rows = {"ensemble": document, "rank fusion": document["rank_fusion"], **document["members"]}
    assert set(rows) == {"ensemble", "rank fusion", "resnet", "vit"}
    for name, figures in rows.items():
        low, high = figures["map@10_ci"]
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        expected = [name, percent(figures["map@10"]), interval, *(percent(figures[m]) for m in measures)]
        assert page.row(name, expected[1]) == expected
    assert len(document["subsets"]) == 3
    for subset in document["subsets"]:
        name = " + ".join(subset["members"])
        expected = [name, percent(subset["map@10"]), *(percent(subset[m]) for m in measures)]
        assert page.row(name, expected[1], expected[2]) == expected
    for step in document["recipe"]["steps"]:
        name = step["name"] + (" (gain over GLRT, no labels)" if step["name"] == "GLRT, gallery labels" else "")
        assert page.row(name)[1] == percent(step["map@10"])
        assert page.row(name)[-2:] == [percent(step["members"][member]) for member in ("resnet", "vit")]
    for label, figures in document["classes"].items():
        expected = [
            " ".join(label.split()),
            percent(figures["map@10"]),
            str(figures["queries"]),
            str(figures["gallery"]),
        ]
        assert page.row(expected[0]) == expected
    assert page.row("expected calibration error")[1] == f"{document['ece']:.3f}"
    assert page.row("share of hits with such a score")[1] == percent(document["coverage@score>=0.5"])
    assert percent(document["map@10_without_near_duplicates"]) in page.text


def test_the_json_agrees_with_itself(hostile: tuple[Findings, dict[str, Any], Page, Path]) -> None:
    findings, document, _, _ = hostile
    whole = next(s for s in document["subsets"] if s["members"] == ["resnet", "vit"])
    assert whole["map@10"] == document["map@10"]
    assert (
        next(s for s in document["subsets"] if s["members"] == ["vit"])["map@10"]
        == document["members"]["vit"]["map@10"]
    )
    gains = document["member_gains"]
    assert gains["vit"]["without"] == document["members"]["resnet"]["map@10"]
    assert gains["vit"]["gain"] == pytest.approx(document["map@10"] - gains["vit"]["without"])
    assert document["map@10"] == pytest.approx(np.mean(findings.evaluation.ensemble.ap))
    assert document["map@10_ci"][0] <= document["map@10"] <= document["map@10_ci"][1]
    assert document["precision_by_rank"]["ensemble"][-1] == pytest.approx(document["p@10"])
    assert document["precision_by_rank"]["vit"][0] == pytest.approx(document["members"]["vit"]["cmc@1"])
    assert sum(document["reliability"]["counts"]) == 10 * document["queries"]
    wrong = sum(pair["queries"] for pair in document["confusions"])
    assert wrong == round((1 - document["cmc@1"]) * document["queries"])


def test_scores_are_compared_with_what_is_relevant(hostile: tuple[Findings, dict[str, Any], Page, Path]) -> None:
    findings, document, page, _ = hostile
    answers = findings.evaluation.answers
    gallery, labels = findings.gallery, findings.queries.labels
    hits = [
        (float(score), gallery[int(row)].label == label)
        for answer, label in zip(answers, labels, strict=True)
        for row, score in zip(answer.rows, answer.scores, strict=True)
    ]
    likely = [right for score, right in hits if score >= 0.5]
    assert document["coverage@score>=0.5"] == pytest.approx(len(likely) / len(hits))
    assert document["precision@score>=0.5"] == pytest.approx(np.mean(likely))
    assert document["calibrated"] is False
    assert "This index is not calibrated" in page.text


def test_the_recipe_ends_with_the_index_itself(hostile: tuple[Findings, dict[str, Any], Page, Path]) -> None:
    _, document, _, _ = hostile
    steps = document["recipe"]["steps"]
    assert steps[0]["name"] == "cosine"
    assert steps[0]["gain"] is None
    assert steps[-1]["name"] == "the index as published"
    assert steps[-1]["map@10"] == document["map@10"]
    value = {step["name"]: step["map@10"] for step in steps}
    for before, step in itertools.pairwise(steps):
        assert step["over"] == (before["name"] if step["name"] != "GLRT, gallery labels" else "GLRT, no labels")
        assert step["gain"] == pytest.approx(step["map@10"] - value[step["over"]])
        assert step["gain_ci"][0] - 1e-9 <= step["gain"] <= step["gain_ci"][1] + 1e-9
    assert document["recipe"]["note"] is None


def test_a_step_is_what_an_index_of_that_step_gives(
    hostile: tuple[Findings, dict[str, Any], Page, Path], tiny: Path, tmp_path: Path
) -> None:
    folder = hostile[3]
    # Neither augmented nor with a label vote; one member has the metric of one step, the other that of another.
    build(open_sources([str(folder / "gallery/images.csv")]), tmp_path / "index", load_ensemble(tiny), SETTINGS)
    _, document, _ = report(tmp_path / "index", tmp_path / "report", str(folder / "queries/images.csv"))
    members = {step["name"]: step["members"] for step in hostile[1]["recipe"]["steps"]}
    assert members["centred PCA"]["resnet"] == document["members"]["resnet"]["map@10"]
    assert members["GLRT, gallery labels"]["vit"] == document["members"]["vit"]["map@10"]
    assert members["cosine"] != members["GLRT, gallery labels"]


def test_steps_that_change_nothing_gain_nothing(
    hostile: tuple[Findings, dict[str, Any], Page, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (
        Step("plain", "glrt", labels=True),
        Step("an image alone is no neighbourhood", "glrt", labels=True, vote={"augmentation_neighbours": 1}),
        Step("heads without a vote", "glrt", labels=True, vote={"label_share": 0.0}, heads=True),
        Step("neighbourhoods", "glrt", labels=True, vote={"augmentation_neighbours": 5}, over="plain"),
    )
    monkeypatch.setattr("cbir.indexer.evaluate.recipe_steps.STEPS", steps)
    folder = hostile[3]
    _, document, page = report(folder / "index", tmp_path, str(folder / "queries/images.csv"))
    plain, alone, heads, moved, _ = document["recipe"]["steps"]
    assert plain["map@10"] == alone["map@10"] == heads["map@10"] != moved["map@10"]
    assert (alone["gain"], alone["gain_ci"], heads["over"]) == (0, [0, 0], alone["name"])
    assert moved["gain"] == pytest.approx(moved["map@10"] - plain["map@10"])
    assert "(gain over plain)" in page.text


def test_hostile_labels_are_text(hostile: tuple[Findings, dict[str, Any], Page, Path]) -> None:
    _, _, page, _ = hostile
    assert "script" not in page.tags
    assert not {name for name, _ in page.attributes if name.startswith("on")}
    assert ("src", "x") not in page.attributes
    for label in HOSTILE:
        assert label in page.text


def test_the_page_needs_nothing_but_itself(hostile: tuple[Findings, dict[str, Any], Page, Path]) -> None:
    _, _, page, folder = hostile
    places = [value or "" for name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert places
    assert all(place.startswith(("data:image/", "#")) for place in places)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"data:image/[^\"]*", "", page.source))
    assert {"script", "link", "iframe", "object"} & page.tags == set()
    assert "prefers-color-scheme: dark" in page.source
    assert (folder / "report/index.html").stat().st_size < 5e6


def test_the_charts_are_pictures(hostile: tuple[Findings, dict[str, Any], Page, Path]) -> None:
    _, _, page, folder = hostile
    names = {path.name for path in (folder / "report").glob("*.png")}
    assert names == {"members.png", "precision.png", "recipe.png", "confusion.png", "calibration.png"}
    inlined = {
        value for name, value in page.attributes if name == "src" and value and value.startswith("data:image/png")
    }
    for name in names:
        data = (folder / "report" / name).read_bytes()
        assert "data:image/png;base64," + base64.b64encode(data).decode() in inlined
        with Image.open(io.BytesIO(data)) as image:
            assert image.width > 600
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10


def test_near_duplicates_are_shown(hostile: tuple[Findings, dict[str, Any], Page, Path]) -> None:
    findings, document, page, _ = hostile
    pairs = document["near_duplicate_pairs"]
    assert ("0-100.png", "0-0.png") in {(pair["query"], pair["image"]) for pair in pairs}
    near = {pair["query"] for pair in pairs}
    ap = [v for v, name in zip(findings.evaluation.ensemble.ap, findings.queries.ids, strict=True) if name not in near]
    assert document["near_duplicates"] == len(near)
    assert document["map@10_without_near_duplicates"] == (pytest.approx(np.mean(ap)) if ap else None)
    assert "of 64 bits differ" in page.text


def test_every_convention_is_stated(hostile: tuple[Findings, dict[str, Any], Page, Path]) -> None:
    _, document, page, _ = hostile
    for name, text in document["conventions"].items():
        assert name in page.text
        assert text in page.text
    assert {"relevance", "map@10", "self", "duplicates", "ties", "no_relevant", "map@r", "ece", "map@10_ci"} <= set(
        document["conventions"]
    )


def test_images_that_are_gone_leave_a_placeholder(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> None:
    source, out = pictures(5), tmp_path / "index"
    build(open_sources([str(source)]), out, load_ensemble(tiny), SETTINGS)
    for path in source.rglob("00[0-2].png"):
        path.unlink()
    for path in source.rglob("003.png"):
        path.write_bytes(b"no image")
    _, document, page = report(out, tmp_path / "report")
    assert document["queries"] == 20
    assert "cannot be read any more" in page.text


def test_a_gallery_of_one_class(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> None:
    source = pictures(6)
    for kind in (1, 2, 3):
        shutil.rmtree(source / f"class{kind}")
    shutil.copytree(source / "class0", tmp_path / "one" / "class0")
    # A single class folder is no class: all images share it, so a table names it.
    table = tmp_path / "one.csv"
    names = sorted(path.relative_to(tmp_path) for path in (tmp_path / "one").rglob("*.png"))
    table.write_text("path,label\n" + "".join(f"{name},only\n" for name in names))
    build(open_sources([str(table)]), tmp_path / "index", load_ensemble(tiny), SETTINGS)
    _, document, page = report(tmp_path / "index", tmp_path / "report")
    assert document["map@10"] == 1
    assert document["confusions"] == []
    assert "No query's first hit is of another class" in page.text
    # Too few images for anything to be fitted: the steps would all be the first.
    assert [step["name"] for step in document["recipe"]["steps"]] == ["cosine", "the index as published"]
    assert "fewer than 50 images" in page.text


def test_singletons_are_left_out_and_counted(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> None:
    source = pictures(3)
    for kind in (1, 2):
        for name in ("001.png", "002.png"):
            (source / f"class{kind}" / name).unlink()
    build(open_sources([str(source)]), tmp_path / "index", load_ensemble(tiny), SETTINGS)
    _, document, page = report(tmp_path / "index", tmp_path / "report")
    assert (document["queries"], document["queries_without_relevant"]) == (6, 2)
    assert set(document["classes"]) == {"class0", "class3"}
    assert "2 queries without a relevant image" in page.text


def test_nothing_but_singletons_is_refused(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> None:
    build(open_sources([str(pictures(1))]), tmp_path / "index", load_ensemble(tiny), SETTINGS)
    with pytest.raises(SourceError, match="none of the 4 queries has a relevant image"):
        report(tmp_path / "index", tmp_path / "report")


def test_without_raw_embeddings_there_is_no_recipe(
    hostile: tuple[Findings, dict[str, Any], Page, Path], tmp_path: Path
) -> None:
    folder = hostile[3]
    _, document, page = report(folder / "index", tmp_path, cache=tmp_path / "empty")
    assert document["recipe"]["steps"] == []
    assert "no longer holds the raw embeddings" in page.text
    assert not (tmp_path / "recipe.png").exists()


def test_a_calibrated_index_is_called_that(
    hostile: tuple[Findings, dict[str, Any], Page, Path], tmp_path: Path
) -> None:
    folder = hostile[3]
    # A curve that is sure of every hit: its error is the share of the hits that are wrong.
    _, document, page = report(
        folder / "index", tmp_path, str(folder / "queries/images.csv"), calibration=((-1, 1), (2, 1))
    )
    assert document["calibrated"] is True
    assert document["coverage@score>=0.5"] == 1
    assert document["precision@score>=0.5"] == pytest.approx(document["p@10"])
    assert document["ece"] == pytest.approx(1 - document["p@10"], abs=f32(32))
    assert "is the probability that the hit is relevant" in page.text
    assert document["recipe"]["steps"][-1]["map@10"] == document["map@10"] == hostile[1]["map@10"]


@pytest.mark.parametrize("members", [1, 7])
def test_ensembles_of_one_and_of_many(pictures: Callable[..., Path], tmp_path: Path, tiny: Path, members: int) -> None:
    head, member, _ = tiny.read_text().split("[[members]]")
    rows = [member.replace('"resnet"', f'"m{i}"').replace("dim = 16", f"dim = {8 + i}") for i in range(members)]
    file = tmp_path / "many.toml"
    file.write_text("[[members]]".join([head, *rows]))
    build(open_sources([str(pictures(4))]), tmp_path / "index", load_ensemble(file), SETTINGS)
    _, document, page = report(tmp_path / "index", tmp_path / "report")
    sizes = [len(subset["members"]) for subset in document["subsets"]]
    if members == 1:
        assert (sizes, document["member_gains"], document["best_member"]) == ([1], {}, None)
        assert "What each member adds" not in page.text
    else:
        assert sorted(sizes) == [1] * 7 + [6] * 7 + [7]
        assert document["all_subsets"] is False
        assert "Single members, all but one, and all" in page.text
        assert "too many subsets to measure each" in page.text


def cbir(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cbir.client.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def test_the_command_writes_and_names_the_page(
    hostile: tuple[Findings, dict[str, Any], Page, Path], tmp_path: Path
) -> None:
    folder = hostile[3]
    asked = ("eval", str(folder / "index"), "--queries", str(folder / "queries/images.csv"), "--device", "cpu")
    done = cbir(*asked, "--report", str(tmp_path / "page"), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "page/report.json").read_text())
    assert document["map@10"] == hostile[1]["map@10"]
    assert f"report: {tmp_path / 'page/index.html'}" in done.stderr


def run_eval(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    eval_command.add_arguments(parser)
    return eval_command.run(parser.parse_args([*arguments, "--device", "cpu", "--runtime", "torch"]))


def test_the_table_has_the_interval(
    hostile: tuple[Findings, dict[str, Any], Page, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hostile[3]
    assert run_eval(str(folder / "index"), "--queries", str(folder / "queries/images.csv")) == 0
    written = capsys.readouterr()
    low, high = hostile[1]["map@10_ci"]
    assert f"{100 * low:.1f}-{100 * high:.1f}" in written.out
    # What only a report needs is not measured.
    assert "recipe" not in written.err


def test_a_file_in_place_of_the_folder_is_refused(
    hostile: tuple[Findings, dict[str, Any], Page, Path], tmp_path: Path
) -> None:
    (tmp_path / "page").write_text("mine")
    with pytest.raises(ConfigurationError, match="is a file: --report needs a folder"):
        run_eval(str(hostile[3] / "index"), "--leave-one-out", "--report", str(tmp_path / "page"))
    assert (tmp_path / "page").read_text() == "mine"


def test_what_a_precision_costs_is_asked_of_queries_only(
    hostile: tuple[Findings, dict[str, Any], Page, Path],
) -> None:
    with pytest.raises(ConfigurationError, match="--precision is of embeddings"):
        run_eval(str(hostile[3] / "index"), "--leave-one-out", "--precision", "int8")
    with pytest.raises(ConfigurationError, match="--report shows the recipe in the precision of the index"):
        run_eval(str(hostile[3] / "index"), "--queries", "any", "--precision", "int8", "--report", "page")


def test_queries_in_another_precision_are_embedded_apart_from_the_index(
    pictures: Callable[..., Path], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf")
    monkeypatch.setenv("CBIR_CACHE", str(tmp_path / "converted"))
    # Whatever this machine makes of eight bits.
    monkeypatch.setattr("cbir.core.ensemble.runtime.quantisation.LEAST_GAIN", 0.0)
    monkeypatch.setattr("cbir.core.ensemble.runtime.quantisation.LEAST_COSINE", -1.0)
    sources, folder = open_sources([str(pictures(10))]), tmp_path / "index"
    build(sources, folder, load_ensemble(tiny), SETTINGS)
    version, cache = IndexStore(folder).open(), folder / "cache"
    retriever = Retriever.load(version, "cpu")
    before = {file: file.read_bytes() for file in cache.rglob("*.safetensors")}
    plain = source_queries(version, retriever, sources, cache, SETTINGS)
    small = source_queries(version, retriever, sources, cache, RunSettings(device="cpu", precision="int8"))
    assert plain.ids == small.ids
    cosines = (plain.vectors * small.vectors).sum(axis=1) / 2
    assert 0.8 < cosines.min() < 0.99999
    assert {file: file.read_bytes() for file in before} == before
    assert set(cache.rglob("*.safetensors")) == set(before)


def test_without_a_report_no_chart_is_prepared() -> None:
    code = "import sys, cbir.indexer.commands.eval; print([m for m in ('matplotlib',) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
