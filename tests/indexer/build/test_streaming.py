"""What is not done again and what is never held: small changes of large galleries, samples, sources that go away."""

from __future__ import annotations

import io
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import encode, pattern

import cbir.core.artifacts.version_writer as version_writer
from cbir.core.artifacts import IndexStore, IndexVersion
from cbir.core.ensemble import load_ensemble
from cbir.core.errors import SourceError, UnknownImageError
from cbir.core.metric import Projection
from cbir.core.search import Retriever
from cbir.core.vote import SearchSpec
from cbir.indexer.build import EmbeddingRun, FitSettings, IndexReport, RunSettings, build
from cbir.indexer.build.fitting import stratified_sample
from cbir.indexer.build.plan import LEFT_OUT, NEW, Plan
from cbir.indexer.build.raw_embeddings import CachedVectors
from cbir.indexer.sources import ScanProblem, SourceImage, open_sources

SETTINGS = RunSettings(device="cpu", runtime="torch", batch=8, workers=2)
#: Galleries of more than 56 images count as large in these tests.
LARGE = FitSettings(sample=56)
#: What a small change of them leaves as it is.
TAKEN_OVER = ("images.parquet", "embeddings.npy")


def index(source: Path | str, out: Path, ensemble: Path, fit: FitSettings = LARGE) -> IndexReport:
    return build(open_sources([str(source)]), out, load_ensemble(ensemble), SETTINGS, fit)


def live(out: Path) -> IndexVersion:
    return IndexStore(out).open(verify=True)


def rows(version: IndexVersion) -> dict[str, int]:
    return {name: row for row, name in enumerate(version.gallery.ids)}


@pytest.mark.parametrize("kind", ["exact", "faiss:IVF4,SQfp16", "faiss:HNSW8"])
def test_a_small_change_of_a_large_gallery(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, kind: str
) -> None:
    """Projections, vectors and indexes stay; what is gone is found by nobody."""
    source, out, fit = pictures(30), tmp_path / "index", FitSettings(sample=56, index=kind)
    index(source, out, tiny, fit)
    first = live(out)
    for number in range(2):
        pattern(1, 900 + number).save(source / "class1" / f"0005-{number}.png")  # between others, not at the end
    (source / "class2" / "007.png").unlink()
    pattern(3, 901).save(source / "class3" / "011.png")
    report = index(source, out, tiny, fit)
    assert (report.images, report.embedded, report.added, report.changed, report.removed) == (121, 3, 2, 1, 1)
    second = live(out)
    before, now = rows(first), rows(second)
    same = [name for name in before if name in now and name != "class3/011.png"]
    for member in ("resnet", "vit"):
        old, new = first.projection(member).arrays(), second.projection(member).arrays()
        assert all((old[name] == new[name]).all() for name in old)
        np.testing.assert_array_equal(
            first.embeddings(member)[[before[name] for name in same]],
            second.embeddings(member)[[now[name] for name in same]],
        )
        assert second.manifest.members[member]["fit"] == {"images": 120, "sample": 56, "changed": 4}
    retriever = Retriever.load(second, "cpu")
    for name in ("class1/0005-1.png", "class3/011.png", "class0/000.png", "class3/029.png"):
        ranking = retriever.search(retriever.vectors_of([now[name]]), [SearchSpec(limit=121)])[0]
        assert ranking.rows[0] == now[name]
        assert len(ranking.rows) == 121
    with pytest.raises(UnknownImageError):
        second.gallery.row("class2/007.png")
    # After so many changes the fit is made anew, and the index with it.
    for number in range(4):
        pattern(0, 950 + number).save(source / "class0" / f"more{number}.png")
    index(source, out, tiny, fit)
    third = live(out)
    fit_now = third.manifest.members["vit"]["fit"]
    assert (fit_now["images"], fit_now["changed"]) == (125, 0)
    assert not (third.projection("vit").mean == first.projection("vit").mean).all()


def test_a_small_change_works_on_what_is_new_alone(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows projected, vectors asked of the cache, heads fitted, checksums computed: those of what is new."""
    source, out = pictures(30), tmp_path / "index"
    index(source, out, tiny)
    first = live(out)
    for number in range(2):
        pattern(1, 900 + number).save(source / "class1" / f"0005-{number}.png")
    (source / "class2" / "007.png").unlink()
    projected: list[int] = []
    asked: list[int] = []
    hashed: list[str] = []
    apply, rows_of, digest = Projection.apply, CachedVectors.__getitem__, version_writer.file_sha256

    def count_projected(self: Projection, raw: Any) -> Any:
        projected.append(len(raw))
        return apply(self, raw)

    def count_asked(self: CachedVectors, rows: Any) -> Any:
        found = rows_of(self, rows)
        asked.append(len(found))
        return found

    def count_hashed(path: Path) -> str:
        hashed.append(path.name)
        return digest(path)

    with monkeypatch.context() as patch:
        patch.setattr(Projection, "apply", count_projected)
        patch.setattr(CachedVectors, "__getitem__", count_asked)
        patch.setattr(version_writer, "file_sha256", count_hashed)
        patch.setattr("cbir.indexer.build.publishing.fit_head", None)
        patch.setattr("cbir.indexer.build.publishing.fit_members", None)
        report = index(source, out, tiny)
    assert (report.added, report.removed, report.embedded) == (2, 1, 2)
    assert projected == asked == [2, 2], "two new images, of two members"
    new = [Path(name).name for name in live(out).manifest.files if Path(name).name not in TAKEN_OVER]
    assert sorted(hashed) == sorted(new), "each file once, and none that was taken over"
    for name, head in live(out).heads().items():
        np.testing.assert_array_equal(head.weight, first.heads()[name].weight)
    # Another class, and the heads are fitted anew.
    (source / "class9").mkdir()
    pattern(2, 950).save(source / "class9" / "new.png")
    index(source, out, tiny)
    assert live(out).heads()["vit"].weight.shape[1] == first.heads()["vit"].weight.shape[1] + 1


def test_a_kept_fit_is_that_of_the_same_ensemble(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> None:
    source, out = pictures(15), tmp_path / "index"
    index(source, out, tiny)
    other = tmp_path / "other.toml"
    other.write_text(tiny.read_text().replace("dim = 16", "dim = 8"))
    pattern(0, 900).save(source / "class0" / "new.png")
    index(source, out, other)
    assert live(out).embeddings("vit").shape == (61, 8)
    assert live(out).manifest.members["vit"]["fit"]["images"] == 61


def test_a_sample_keeps_the_shares_of_classes() -> None:
    codes = np.repeat([0, 1, 2, -1], [600, 300, 3, 97]).astype(np.int32)
    chosen = stratified_sample(codes, 1000, 100)
    assert isinstance(chosen, np.ndarray)
    counts = {code: int((codes[chosen] == code).sum()) for code in (0, 1, 2, -1)}
    assert counts == {0: 60, 1: 30, 2: 2, -1: 9}
    assert (np.diff(chosen) > 0).all()
    assert (stratified_sample(codes, 1000, 100) == chosen).all()
    assert stratified_sample(codes, 1000, 1000) == slice(None)
    assert len(stratified_sample(None, 1000, 100)) == 100  # type: ignore[arg-type]


def test_shards_that_have_not_changed_are_not_scanned(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "shards", tmp_path / "index"
    folder.mkdir()
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for k in range(8):
                data = encode(pattern(k % 4, 8 * number + k), "PNG")
                member = tarfile.TarInfo(f"{k}.png")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    first = index(folder, out, tiny)
    told = live(out).sources()
    assert isinstance(told, list)
    assert [part["images"] for part in told[0]["parts"]] == [8, 8]
    with monkeypatch.context() as patch:
        patch.setattr("cbir.indexer.sources.shards.ShardSource.scan", None)
        again = index(folder, out, tiny)
        assert (again.published, again.images, again.version) == (False, 16, first.version)
    (folder / "1.tar").unlink()
    assert index(folder, out, tiny).removed == 8


def test_a_source_that_vanishes_leaves_the_live_version(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    old = index(pictures(2, "small"), out, tiny)
    source = pictures(15)
    original, calls = EmbeddingRun._forward, 0

    def pulled_out(self: EmbeddingRun) -> None:
        nonlocal calls
        calls += 1
        original(self)
        if calls == 1:
            source.rename(tmp_path / "elsewhere")

    monkeypatch.setattr(EmbeddingRun, "_forward", pulled_out)
    with pytest.raises(SourceError, match="vanished while they were read, the first of them") as caught:
        index(source, out, tiny)
    assert caught.value.reason == "SOURCE_VANISHED"
    assert live(out).name == old.version
    (tmp_path / "elsewhere").rename(source)
    monkeypatch.setattr(EmbeddingRun, "_forward", original)
    report = index(source, out, tiny)
    assert report.images == 60
    assert report.embedded < 60 - 8, "what was embedded before it vanished is kept"


def test_a_read_that_fails_twice_and_then_works(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cbir.core.files import uri

    original = uri._read_file
    failures: dict[Path, int] = {}

    def flaky(path: Path, max_bytes: int) -> bytes:
        if path.name == "000.png" and failures.setdefault(path, 0) < 2:
            failures[path] += 1
            raise OSError(5, "Input/output error")
        return original(path, max_bytes)

    monkeypatch.setattr(uri, "_read_file", flaky)
    monkeypatch.setattr(uri, "_WAITS", (0, 0))
    report = index(pictures(2), tmp_path / "index", tiny)
    assert (report.images, report.skipped, set(failures.values())) == (8, (), {2})


def test_a_full_disk_leaves_the_live_version(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told with its place while the plan is written, and while vectors are; the old version stays."""
    source, out = pictures(2), tmp_path / "index"
    old = index(source, out, tiny).version
    pattern(0, 99).save(source / "class0" / "new.png")
    with monkeypatch.context() as patch:
        patch.setattr(
            Plan, "_write", lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError("database or disk is full"))
        )
        with pytest.raises(OSError, match="No space left") as caught:
            index(source, out, tiny)
        assert str(out) in caught.value.filename
    with monkeypatch.context() as patch:

        def full(*unused: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("cbir.core.artifacts.vector_file.VectorFile.append", full)
        with pytest.raises(OSError, match="No space left"):
            index(source, out, tiny)
    assert live(out).name == old
    assert not list(out.glob(".plan-*"))
    assert not list(out.glob("versions/.partial-*"))
    assert index(source, out, tiny).added == 1


class Listed:
    """Sources that hold the images that they are given."""

    def __init__(self, images: list[tuple[int, SourceImage]]) -> None:
        self.images = images

    def stream(self) -> Iterator[tuple[int, SourceImage]]:
        return iter(self.images)

    def settle(self, image: SourceImage, number: int, other: SourceImage, its_number: int) -> ScanProblem:
        if number != its_number:
            raise SourceError("two", reason="SOURCE_DUPLICATE_ID")
        return ScanProblem(image.uri, f"as {other.uri}")


def planned(folder: Path, names: list[str], source: int = 0) -> Any:
    images = [(source if place else 0, SourceImage(name, f"/{place}", None, "s", {"n": name})) for place, name in
              enumerate(names)]  # fmt: skip
    plan = Plan(folder)
    plan.find(Listed(images))  # type: ignore[arg-type]
    plan.compare(Listed(images), [], lambda digests: np.zeros(len(digests), bool), {})  # type: ignore[arg-type]
    return plan


def test_a_plan_is_in_the_order_of_ids(tmp_path: Path) -> None:
    names = ["b", "a/\N{GREEK SMALL LETTER ALPHA}", "a/z", "A", "a", "\N{GRINNING FACE}", "\uffee", "a/Z"]
    with planned(tmp_path, [*names, "a"]) as plan:
        assert [image.id for image in plan.todo()] == sorted(names)
        assert [image.metadata["n"] for image in plan.todo()] == sorted(names)
        assert plan.twins == [ScanProblem("/8", "as /4")]
        assert plan.rows.tolist().count(NEW) == plan.todo_count == 8
        assert plan.rows.tolist().count(LEFT_OUT) == 1
    assert not list(tmp_path.iterdir())
    with pytest.raises(SourceError):
        planned(tmp_path, ["x", "x"], source=1)


def test_plans_of_killed_runs_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".plan-killed").mkdir()
    (tmp_path / ".plan-killed" / "images.sqlite").write_bytes(b"x")
    with Plan(tmp_path):
        assert not (tmp_path / ".plan-killed").exists()
    shutil.rmtree(tmp_path)
