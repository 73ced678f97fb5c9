"""Small changes of a large gallery, one after another: what was written before is shared, and counts as before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from images import pattern
from precision import f16

from cbir.client.cli.program import main
from cbir.core.artifacts import IndexStore, IndexVersion
from cbir.core.ensemble import load_ensemble
from cbir.core.errors import ArtifactError, UnknownImageError
from cbir.core.search import Retriever
from cbir.core.vote import SearchSpec
from cbir.indexer.build import FitSettings, RunSettings, build
from cbir.indexer.build.next_segment import NextSegment
from cbir.indexer.sources import open_sources
from cbir.indexer.tune import vote_choice
from cbir.indexer.tune.vote_choice import VoteChoice
from cbir.server.engine import Engine, EngineQuery, ImageBytes, StoredImage

SETTINGS = RunSettings(device="cpu", runtime="torch", batch=8, workers=2)
SHARED = ("images.parquet", "members/resnet/embeddings.npy", "members/vit/embeddings.npy")
NEW = ("images-1.parquet", "members/resnet/embeddings-1.npy", "members/vit/embeddings-1.npy")


class Kept:
    """A folder of images and its index, which counts as large."""

    def __init__(self, source: Path, out: Path, ensemble: Path) -> None:
        self.source, self.out, self.ensemble = source, out, ensemble

    def index(self, fit: FitSettings | None = None) -> IndexVersion:
        fit = fit or FitSettings(sample=56)
        build(open_sources([str(self.source)]), self.out, load_ensemble(self.ensemble), SETTINGS, fit)
        return self.live()

    def live(self) -> IndexVersion:
        return IndexStore(self.out).open(verify=True)

    def draw(self, name: str, seed: int) -> None:
        pattern(seed % 4, seed).save(self.source / name)

    def inode(self, version: IndexVersion, name: str) -> int:
        return (version.path / name).stat().st_ino


@pytest.fixture
def kept(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> Kept:
    return Kept(pictures(30), tmp_path / "index", tiny)


def check_rows(kept: Kept, version: IndexVersion) -> None:
    """The table is that of the folder, and every image is found by its own vector and no other."""
    names = sorted(path.relative_to(kept.source).as_posix() for path in kept.source.rglob("*.png"))
    images = list(version.gallery.images())
    assert [image.id for image in images] == names == list(version.gallery.ids)
    for image in images:
        path = kept.source / image.id
        assert Path(image.uri) == path
        assert image.stamp
        assert image.label == path.parent.name
        assert version.gallery.read_bytes(version.gallery.row(image.id)) == path.read_bytes()
    assert [name for batch in version.table(["id"]) for name in batch.column("id").to_pylist()] == names
    retriever = Retriever.load(version, "cpu")
    for row in range(0, len(names), 7):
        ranking = retriever.search(retriever.vectors_of([row]), [SearchSpec(limit=len(names))])[0]
        assert sorted(ranking.rows.tolist()) == list(range(len(names))), "all rows, and each once"
        # Which comes first is the vote's to say, and among near-equal images that of rounding.
        own = ranking.similarities[ranking.rows == row]
        assert (own >= ranking.similarities.max(axis=0) - f16(8)).all()
        assert own == pytest.approx(1, abs=f16(8))


def test_updates_one_after_another(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbir.indexer.build.next_segment.MOST_SEGMENTS", 3)
    whole = kept.index()
    assert whole.manifest.segments == ()
    assert whole.manifest.to_json()["format"] == 2, "as earlier releases read it"
    (kept.source / "class1/005.png").rename(kept.source / "away")
    removed = kept.index()
    assert removed.manifest.segments == (120, 0)
    with pytest.raises(UnknownImageError):
        removed.gallery.row("class1/005.png")
    check_rows(kept, removed)
    (kept.source / "away").rename(kept.source / "class1/005.png")  # here again
    kept.draw("class0/0005.png", 900)  # between others
    again = kept.index()
    assert again.manifest.segments == (120, 0, 2)
    check_rows(kept, again)
    row, before = again.gallery.row("class1/005.png"), whole.gallery.row("class1/005.png")
    for member in ("resnet", "vit"):
        np.testing.assert_allclose(
            again.embeddings(member)[row].astype(float), whole.embeddings(member)[before].astype(float), atol=2e-3
        )
    kept.draw("class0/0005.png", 901)  # other bytes of what the last segment holds
    kept.draw("class2/001.png", 902)  # and of what the first holds
    merged = kept.index()
    assert merged.manifest.segments == (120, 3), "of three segments the first stays, and the others become one"
    check_rows(kept, merged)
    for name in SHARED:
        assert len({kept.inode(version, name) for version in (whole, removed, again, merged)}) == 1, "stored once"
        assert merged.manifest.files[name] == whole.manifest.files[name]
    assert kept.inode(merged, NEW[1]) != kept.inode(again, NEW[1])
    for number in (903, 904):
        kept.draw(f"class3/new{number}.png", number)
    refitted = kept.index()
    assert refitted.manifest.segments == (), "after a twentieth has changed, all is written anew"
    check_rows(kept, refitted)


def test_back_to_an_older_version_and_on_from_there(kept: Kept) -> None:
    whole = kept.index()
    kept.draw("class0/one.png", 900)
    one = kept.index()
    store = IndexStore(kept.out)
    with store.lock():
        assert store.rollback() == whole.name
    assert store.open(verify=True).manifest.images == 120
    kept.draw("class0/two.png", 901)
    two = kept.index()
    assert (one.manifest.segments, two.manifest.segments) == ((120, 1), (120, 2))
    check_rows(kept, two)
    with store.lock():
        assert store.collect(1) == [whole.name, one.name]
    check_rows(kept, kept.live())
    # A folder of a version is all of it.
    copy = IndexStore(kept.out.parent / "copy")
    shutil.copytree(two.path, copy.path / "versions" / two.name)
    shutil.copy(kept.out / "CURRENT", copy.path)
    assert copy.open(verify=True).embeddings("vit").shape == (122, two.embeddings("vit").shape[1])


@pytest.mark.parametrize("name", [*SHARED, *NEW, "places.npy"])
def test_a_flipped_byte_is_told_by_its_file(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, name: str
) -> None:
    kept = _twice(pictures, tmp_path, tiny)
    victim = kept.live().path / name
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    version = IndexStore(kept.out).open()
    with pytest.raises(ArtifactError, match=f"{name} does not match its checksum") as caught:
        Retriever.load(version, "cpu")
    assert caught.value.reason == "INDEX_CORRUPT"
    with pytest.raises(ArtifactError, match=name):
        version.verify()
    kept.index(FitSettings(sample=56, rebuild=True))
    assert kept.live().manifest.segments == ()
    check_rows(kept, kept.live())


def _twice(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> Kept:
    kept = Kept(pictures(15), tmp_path / "index", tiny)
    kept.index()
    kept.draw("class0/new.png", 900)
    assert kept.index().manifest.segments == (60, 1)
    return kept


def test_an_update_that_is_killed_changes_nothing(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was written so far; and what is published afterwards is what an undisturbed run publishes."""
    whole = kept.index()
    facts = dict(whole.manifest.files)
    other = kept.out.parent / "undisturbed"
    shutil.copytree(kept.out, other)
    kept.draw("class0/new.png", 900)
    (kept.source / "class2/003.png").unlink()

    class Killed(BaseException):
        pass

    def die(*unused: object) -> None:
        raise Killed

    for place in ("take_over_index", "write_places", "take_over"):
        with monkeypatch.context() as patch:
            patch.setattr(NextSegment, place, die)
            patch.setattr("cbir.core.artifacts.version_writer.VersionWriter.abandon", lambda self: None)
            with pytest.raises(Killed):
                kept.index()
        assert list(kept.out.glob("versions/.partial-*"))
        live = kept.live()
        assert (live.name, dict(live.manifest.files)) == (whole.name, facts)
    second = kept.index()
    assert not list(kept.out.glob("versions/.partial-*"))
    kept.out = other
    undisturbed = kept.index()
    assert second.manifest.segments == undisturbed.manifest.segments == (120, 1)
    assert dict(second.manifest.files) == dict(undisturbed.manifest.files)


def test_without_hard_links_files_are_copied(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = kept.index()
    kept.draw("class0/new.png", 900)

    def no_links(*unused: object, **options: object) -> None:
        raise OSError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr("os.link", no_links)
        second = kept.index()
    assert second.manifest.segments == (120, 1)
    for name in SHARED:
        assert kept.inode(second, name) != kept.inode(whole, name)
    check_rows(kept, second)


@pytest.mark.parametrize("kind", ["exact", "faiss:Flat"])
def test_answers_are_those_of_a_version_that_was_written_whole(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """By an engine, as a server has it, with the same fit."""
    kept, fit = Kept(pictures(15), tmp_path / "index", tiny), FitSettings(sample=56, index=kind)
    kept.index(fit)
    other = Kept(kept.source, tmp_path / "whole", tiny)
    shutil.copytree(kept.out, other.out)
    kept.draw("class0/0005.png", 900)
    kept.draw("class2/001.png", 902)
    (kept.source / "class3/007.png").unlink()
    segmented = kept.index(fit)
    with monkeypatch.context() as patch:
        patch.setattr(NextSegment, "after", lambda *unused: None)
        whole = other.index(fit)
    assert (segmented.manifest.segments, whole.manifest.segments) == ((60, 2), ())
    assert list(segmented.gallery.images()) == list(whole.gallery.images())
    one, two = (Engine.load(part.out, device="cpu", runtime="torch") for part in (kept, other))
    for name in ("class0/0005.png", "class1/003.png", "class2/001.png", "class3/014.png"):
        for source in (ImageBytes((kept.source / name).read_bytes()), StoredImage(name)):
            results = [engine.search(EngineQuery(source, limit=60)) for engine in (one, two)]
            scores = [{hit.image.id: hit.score for hit in result.hits} for result in results]
            assert len(scores[0]) == 60
            # Vectors are rounded to float16, and sums are in another order.
            assert scores[0] == pytest.approx(scores[1], abs=f16(4))
            assert dict(results[0].labels) == pytest.approx(dict(results[1].labels), abs=f16(16))


def test_commands_on_segments(
    pictures: Callable[..., Path],
    tmp_path: Path,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    kept = _twice(pictures, tmp_path, tiny)
    segmented, index = kept.live(), str(kept.out)

    def told(*arguments: str) -> dict:
        capsys.readouterr()
        assert main([*arguments, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert isinstance(document, dict)
        return document

    assert told("verify", index)["sound"]
    facts = told("info", index)
    assert (facts["images"], facts["version"]) == (61, segmented.name)
    assert facts["bytes"] == sum((segmented.path / name).stat().st_size for name in segmented.manifest.files)
    assert told("eval", index, "--leave-one-out", "--device", "cpu", "--runtime", "torch")["queries"] == 61
    told("dedup", index)
    # A vote that counts as a gain is published, by a version that answers and that the next update goes on from.
    monkeypatch.setattr(vote_choice, "search_vote", lambda table, start, *rest: replace(start, temperature=0.3))
    monkeypatch.setattr(VoteChoice, "_held_out", staticmethod(lambda table, halves: np.ones(len(table))))
    assert told("tune", index, "--device", "cpu", "--runtime", "torch")["published"]
    tuned = kept.live()
    assert tuned.vote.temperature == 0.3
    check_rows(kept, tuned)
    kept.draw("class1/new.png", 901)
    more = kept.index()
    assert (more.manifest.segments, more.vote) == ((61, 1), tuned.vote)
    check_rows(kept, more)
    (kept.source / "class1/new.png").unlink()
    assert told("rollback", index)["version"] == tuned.name
    check_rows(kept, kept.live())
    assert told("rollback", index)["version"] == segmented.name
    check_rows(kept, kept.live())
    gone = told("gc", index, "--keep", "0")
    assert (len(gone["removed"]), gone["forgotten"] > 0) == (3, True)
    assert told("verify", index)["sound"]
    check_rows(kept, kept.live())
