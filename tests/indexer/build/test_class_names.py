"""Indexing with members that understand words: what is stored, and that nothing is embedded twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_clip
from images import pattern
from precision import f32
from small_index import reseal

from cbir.client.cli.program import main
from cbir.core.artifacts import EmbeddingCache, IndexStore, IndexVersion
from cbir.core.ensemble import PROMPTS, EnsembleSpec, TextEmbedder, class_embeddings, load_ensemble, load_text_embedder
from cbir.core.search import Retriever, zero_shot_probabilities
from cbir.indexer.build import IndexReport, RunSettings, build
from cbir.indexer.build.class_names import class_names_folder
from cbir.indexer.evaluate import gallery_queries, source_queries
from cbir.indexer.evaluate.answers import Judge, ask
from cbir.indexer.sources import open_sources
from cbir.indexer.tune import tune
from cbir.indexer.tune.objective import Trial
from cbir.indexer.tune.score_table import ScoreTable
from cbir.server.engine import Engine, EngineQuery, StoredImage

RUN = RunSettings(device="cpu", runtime="torch", workers=1)


@pytest.fixture
def worded(tmp_path: Path) -> Path:
    """An ensemble file whose members ``clip`` and ``wide`` understand words."""
    tiny_clip.register()
    path = tmp_path / "worded.toml"
    path.write_text(tiny_clip.ENSEMBLE)
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The label lists that were embedded, one a call."""
    calls: list[list[str]] = []

    def watch(embedder: TextEmbedder, labels: list[str]) -> np.ndarray:
        calls.append(list(labels))
        return class_embeddings(embedder, labels)

    monkeypatch.setattr("cbir.indexer.build.class_names.class_embeddings", watch)
    return calls


def run(source: Path, out: Path, ensemble: EnsembleSpec | Path) -> tuple[IndexReport, IndexVersion]:
    spec = load_ensemble(ensemble) if isinstance(ensemble, Path) else ensemble
    report = build(open_sources([str(source)]), out, spec, RUN)
    return report, IndexStore(out).open()


def test_the_joint_space_is_stored(worded: Path, pictures: Callable[..., Path], tmp_path: Path) -> None:
    _, version = run(pictures(4), tmp_path / "index", worded)
    spec = load_ensemble(worded)
    digests = [bytes.fromhex(version.gallery.sha256(row)) for row in range(16)]
    for member in (spec.members[0], spec.members[2]):
        facts = version.manifest.members[member.name]
        assert (facts["text"], facts["prompts"]) == (True, PROMPTS)
        raw = EmbeddingCache(tmp_path / "index/cache", facts["fingerprint"]).get(digests)
        joint = version.joint(member.name)
        assert joint.dtype == np.float16
        np.testing.assert_array_equal(joint, raw)
        found = version.classes(member.name)
        assert found is not None
        embedder = load_text_embedder(member, "cpu")
        np.testing.assert_allclose(found[0], class_embeddings(embedder, version.gallery.labels), atol=f32(256))
        assert found[1] == pytest.approx(1 / 0.07, rel=f32(256))
        right = (joint.astype(np.float32) @ found[0].T).argmax(axis=1) == version.gallery.label_codes
        assert facts["zero_shot_accuracy"] == pytest.approx(right.mean(), abs=f32(2048))
    assert version.manifest.members["resnet"]["text"] is False
    assert version.classes("resnet") is None
    assert not (version.path / "members/resnet/joint.npy").exists()
    version.verify()


def test_unchanged_labels_are_not_embedded_again(
    worded: Path, pictures: Callable[..., Path], tmp_path: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = pictures(4), tmp_path / "index"
    _, first = run(source, out, worded)
    labels = [f"class{i}" for i in range(4)]
    assert asked == [labels, labels]
    asked.clear()
    pattern(0, 99).save(source / "class0/new.png")

    def refuse(*args: object) -> None:
        raise AssertionError("no text tower is needed")

    with monkeypatch.context() as patch:
        patch.setattr("cbir.indexer.build.class_names.load_text_embedder", refuse)
        report, second = run(source, out, worded)
    assert (report.published, report.images) == (True, 17)
    (source / "a_new-class").mkdir()
    pattern(1, 99).save(source / "a_new-class/new.png")
    _, third = run(source, out, worded)
    assert asked == [["a_new-class"]] * 2
    for name in ("clip", "wide"):
        one, two, three = (version.classes(name) for version in (first, second, third))
        assert one is not None
        assert two is not None
        assert three is not None
        np.testing.assert_allclose(one[0], two[0], atol=f32(32))
        np.testing.assert_allclose(three[0][1:], one[0], atol=f32(32))


def test_a_gallery_without_labels_needs_no_text_tower(worded: Path, tmp_path: Path, asked: list[list[str]]) -> None:
    (tmp_path / "plain").mkdir()
    for i in range(6):
        pattern(i % 4, i).save(tmp_path / f"plain/{i}.png")
    _, version = run(tmp_path / "plain", tmp_path / "index", worded)
    assert asked == []
    assert version.manifest.members["clip"]["text"] is True
    assert version.manifest.members["clip"]["prompts"] is None
    assert version.classes("clip") is None
    assert version.joint("clip").shape == (6, 32)


def test_text_can_be_left_out_and_taken_in_again(
    worded: Path, pictures: Callable[..., Path], tmp_path: Path, asked: list[list[str]]
) -> None:
    source, out = pictures(3), tmp_path / "index"
    words = worded.read_text()
    worded.write_text(words.replace('model = "tiny-clip', 'text = false\nmodel = "tiny-clip'))
    _, mute = run(source, out, worded)
    assert [facts["text"] for facts in mute.manifest.members.values()] == [False] * 3
    assert asked == []
    worded.write_text(words)
    report, version = run(source, out, worded)
    assert (report.published, report.embedded) == (True, 0)
    assert version.manifest.members["clip"]["text"] is True


def test_an_index_from_before_text_towers_is_completed(
    worded: Path, pictures: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = pictures(3), tmp_path / "index"
    run(source, out, worded)

    def before(manifest: dict[str, Any]) -> dict[str, Any]:
        for facts, member in zip(manifest["members"].values(), manifest["ensemble"]["members"], strict=True):
            for key in ("text", "prompts", "zero_shot_accuracy"):
                facts.pop(key, None)
            del member["text"]
        return manifest

    reseal(IndexStore(out), before)
    report, completed = run(source, out, worded)
    assert (report.published, report.embedded) == (True, 0)
    assert completed.manifest.members["wide"]["text"] is True
    assert run(source, out, worded)[0].published is False


def test_info_tells_and_gc_forgets_names_of_no_version(
    worded: Path, pictures: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = pictures(3), tmp_path / "index"
    run(source, out, worded)
    assert main(["info", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["search"] == {"state": "product", "candidates": ["product"]}
    members = document["members"]
    assert [members[name]["text"] for name in ("clip", "resnet", "wide")] == [True, False, True]
    assert main(["info", str(out)]) == 0
    told = capsys.readouterr().out
    assert "words" in told
    assert "exact search on this CPU: by product, as the index is small" in told
    for file in (source / "class3").iterdir():
        file.unlink()
    _, version = run(source, out, worded)
    folder = class_names_folder(version.manifest.members["clip"]["fingerprint"])
    assert len(EmbeddingCache(out / "cache", folder)) == 4
    assert main(["gc", str(out), "--keep", "0"]) == 0
    assert len(EmbeddingCache(out / "cache", folder)) == 3
    worded.write_text(worded.read_text().replace('model = "tiny-clip"', 'text = false\nmodel = "tiny-clip"'))
    run(source, out, worded)
    assert main(["gc", str(out), "--keep", "0"]) == 0
    assert len(EmbeddingCache(out / "cache", folder)) == 3, "the member is still there; its words cost a few bytes"


def test_eval_asks_as_the_server_does(worded: Path, pictures: Callable[..., Path], tmp_path: Path) -> None:
    source, out = pictures(6), tmp_path / "index"
    run(source, out, worded)
    tiny_clip.claim_accuracy(out, 0.9)
    version = IndexStore(out).open()
    retriever = Retriever.load(version, "cpu")
    by_row = gallery_queries(retriever, version=version)
    by_file = source_queries(version, retriever, open_sources([str(source)]), out / "cache", RUN)
    engine = Engine.load(out, device="cpu", runtime="torch")
    for queries in (by_row, by_file):
        answers = ask(retriever, queries, Judge.of(version.gallery, queries))
        for image_id, answer in zip(queries.ids, answers, strict=True):
            told = engine.search(EngineQuery(StoredImage(image_id), exclude_query=True))
            assert [version.gallery.ids[row] for row in answer.rows] == [hit.image.id for hit in told.hits]
            assert answer.predicted == told.labels[0][0]
    assert by_row.names is not None
    # Without the names the labels would be others, so that the comparison means something.
    mute = ask(retriever, replace(by_row, names=None), Judge.of(version.gallery, by_row))
    named = ask(retriever, by_row, Judge.of(version.gallery, by_row))
    assert [a.predicted for a in mute] != [a.predicted for a in named]


def test_tuning_hears_names_that_mean_something(
    worded: Path, pictures: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = pictures(15), tmp_path / "index"
    _, version = run(source, out, worded)
    digests = [bytes.fromhex(version.gallery.sha256(row)) for row in range(len(version.gallery))]
    tables: list[ScoreTable] = []

    def choose(table: ScoreTable, start: Trial, *rest: object) -> Trial:
        tables.append(table)
        return replace(start, text_share=0.6) if table.names else start

    monkeypatch.setattr("cbir.indexer.tune.vote_choice.search_vote", choose)
    # A fourth is chance.
    tiny_clip.claim_accuracy(out, 0.25)
    assert tune(out, settings=RUN).queries == 60
    assert all(table.names == {} for table in tables)
    tiny_clip.claim_accuracy(out, 0.7)
    assert tune(out, settings=RUN).vote.text_share == 0.6
    table = tables[-1]
    # In the order of the members; "resnet" has no words.
    assert list(table.names) == [0, 2]
    for m, name in ((0, "clip"), (2, "wide")):
        raw = EmbeddingCache(out / "cache", version.manifest.members[name]["fingerprint"]).get(digests)
        found = version.classes(name)
        assert found is not None
        said = 0.6 * zero_shot_probabilities(raw.astype(np.float32), *found)
        np.testing.assert_allclose(table.names[m], said[table.rows], atol=f32(256))
