"""The indexer: counts, resume after SIGKILL at any moment, changed folders, bad files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hostile_images
import numpy as np
import pytest
from images import encode, gradient, pattern, png_bomb, truncated_jpeg
from PIL import Image
from precision import f16

from cbir.core.artifacts import IndexStore
from cbir.core.ensemble import load_ensemble
from cbir.core.errors import ArtifactError, ConfigurationError, SourceError
from cbir.core.search import Retriever
from cbir.core.vote import SearchSpec
from cbir.indexer.build import EmbeddingRun, FitSettings, IndexReport, RawEmbeddings, RunSettings, build
from cbir.indexer.sources import open_sources

SETTINGS = RunSettings(device="cpu", runtime="torch", batch=16, workers=2)


def index(source: Path, out: Path, ensemble: Path, fit: FitSettings | None = None) -> IndexReport:
    report = build(open_sources([str(source)]), out, load_ensemble(ensemble), SETTINGS, fit)
    assert report.embedded + report.reused == report.images
    return report


def counts(report: IndexReport) -> tuple[int, ...]:
    return (report.images, report.embedded, report.reused, report.added, report.changed, report.removed)


def test_a_folder_becomes_an_index(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> None:
    report = index(pictures(15), tmp_path / "index", tiny)
    assert counts(report) == (60, 60, 0, 60, 0, 0)
    assert report.fitted_on == {"resnet": "gallery", "vit": "labels"}
    version = IndexStore(tmp_path / "index").open(verify=True)
    assert version.gallery.labels == [f"class{k}" for k in range(4)]
    assert version.gallery.ids == sorted(version.gallery.ids)
    for member in ("resnet", "vit"):
        vectors = version.embeddings(member).astype(np.float32)
        assert vectors.shape == (60, 16)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=f16(4))
    # An image finds itself first, and its stored vector is what its own query is projected to.
    retriever = Retriever.load(version, "cpu")
    ranking = retriever.search(retriever.vectors_of([7]), [SearchSpec()])[0]
    assert ranking.rows[0] == 7
    assert ranking.fused[0] == pytest.approx(1, abs=f16(4))


def test_no_file_ends_a_run(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that would decode for minutes are left out by name, as those that cannot be read are."""
    monkeypatch.setattr("cbir.indexer.build.embedding._DECODE_SECONDS", 0.3)
    source = pictures(5)
    (source / "bomb.bmp").write_bytes(hostile_images.skipping_bmp(1_000_000, 100))
    (source / "scans.jpg").write_bytes(hostile_images.many_scans(1000, 64, 48))
    report = index(source, tmp_path / "index", tiny)
    assert report.images == 20
    version = IndexStore(tmp_path / "index").open()
    skipped = {Path(entry["uri"]).name: entry["reason"] for entry in version.manifest.skipped}
    assert skipped.keys() == {"bomb.bmp", "scans.jpg"}
    assert "0.3 seconds" in skipped["bomb.bmp"]
    assert "64 scans" in skipped["scans.jpg"]


def test_nothing_new_publishes_nothing(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> None:
    source, out = pictures(5), tmp_path / "index"
    first = index(source, out, tiny)
    again = index(source, out, tiny)
    assert (again.version, again.published) == (first.version, False)
    assert counts(again) == (20, 0, 20, 0, 0, 0)
    assert IndexStore(out).versions() == [first.version]
    # Touched but not changed: read again, embedded never.
    os.utime(source / "class0" / "000.png", (1, 1))
    touched = index(source, out, tiny)
    assert counts(touched) == (20, 0, 20, 0, 0, 0)


def test_added_changed_and_removed_images(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> None:
    source, out = pictures(15), tmp_path / "index"
    index(source, out, tiny)
    for i in range(10):
        pattern(0, 100 + i).save(source / "class0" / f"new{i}.png")
    for i in range(5):
        pattern(1, 200 + i).save(source / "class1" / f"{i:03d}.png")
    gone = [source / "class2" / f"{i:03d}.png" for i in range(7)]
    for path in gone:
        path.unlink()
    report = index(source, out, tiny)
    assert counts(report) == (63, 15, 48, 10, 5, 7)
    retriever = Retriever.load(IndexStore(out).open(), "cpu")
    everything = retriever.search(retriever.vectors_of([0]), [SearchSpec(limit=100)])[0]
    found = {retriever.gallery[int(row)].id for row in everything.rows}
    assert len(found) == 63
    assert not found & {f"class2/{path.name}" for path in gone}


def test_identical_files_are_embedded_once(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> None:
    source = pictures(3)
    shutil.copy(source / "class0" / "000.png", source / "class0" / "copy.png")
    assert counts(index(source, tmp_path / "index", tiny)) == (13, 12, 1, 13, 0, 0)


def test_another_ensemble_uses_what_it_shares(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> None:
    source, out = pictures(4), tmp_path / "index"
    index(source, out, tiny)
    other = tmp_path / "other.toml"
    other.write_text(tiny.read_text().replace("dim = 16", "dim = 8").replace('name = "tiny"', 'name = "other"'))
    report = index(source, out, other)
    assert counts(report) == (16, 0, 16, 0, 0, 0)
    assert report.published
    assert IndexStore(out).open().manifest.ensemble.name == "other"


def test_pseudo_labels_are_used_when_asked_for(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> None:
    report = index(pictures(15), tmp_path / "index", tiny, FitSettings(pseudo_labels=True))
    assert report.fitted_on["vit"] == "neighbours"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, str]:
    """The checksums of a version that was made without a kill: of eight pictures, then of sixty."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for name, each in (("small", 2), ("pictures", 15)):
        for kind in range(4):
            (folder / name / f"class{kind}").mkdir(parents=True)
            for i in range(each):
                pattern(kind, i).save(folder / name / f"class{kind}" / f"{i:03d}.png")
        index(folder / name, folder / "index", tiny)
    return contents(folder / "index")


def contents(out: Path) -> dict[str, str]:
    """Checksum by file of what does not tell when and where it was made."""
    files = IndexStore(out).open(verify=True).manifest.files
    return {name: facts["sha256"] for name, facts in files.items() if name not in ("images.parquet", "sources.json")}


@pytest.mark.parametrize("moment", ["scanning", "embedding", "projecting", "building", "writing", "publishing"])
def test_a_killed_indexer_leaves_the_old_version_and_its_work(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, moment: str, undisturbed: dict[str, str]
) -> None:
    source, out = pictures(15), tmp_path / "index"
    small = pictures(2, "small")
    old = index(small, out, tiny)
    script = Path(__file__).with_name("killed_indexer.py")
    died = subprocess.run(
        [sys.executable, str(script), moment, str(source), str(out), str(tiny)], capture_output=True, timeout=120
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    store = IndexStore(out)
    assert store.open(verify=True).name == old.version
    kept = RawEmbeddings(out / "cache", load_ensemble(tiny))
    digests = {bytes.fromhex(image.sha256) for image in store.open().gallery.images()}
    committed = len(kept._facts)
    # The eight pictures of the small folder are among those of the large one; two batches of ten follow.
    assert committed == {"scanning": 8, "embedding": 28}.get(moment, 60)
    assert all(kept.known(digest) for digest in digests)
    report = index(source, out, tiny)
    assert report.embedded == 60 - committed
    assert counts(report)[0] == 60
    assert contents(out) == undisturbed
    assert not list(out.glob(".plan-*"))
    assert store.open(verify=True).gallery.labels == [f"class{k}" for k in range(4)]


def test_two_indexers_do_not_mix(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> None:
    source, out = pictures(1), tmp_path / "index"
    with IndexStore(out).lock(), pytest.raises(ArtifactError, match="another process is writing"):
        index(source, out, tiny)


def test_ctrl_c_keeps_what_is_done(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = pictures(15), tmp_path / "index"
    original, calls = EmbeddingRun._forward, 0

    def interrupted(self: EmbeddingRun) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(EmbeddingRun, "_forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index(source, out, tiny)
    monkeypatch.setattr(EmbeddingRun, "_forward", original)
    assert not IndexStore(out).has_current()
    report = index(source, out, tiny)
    assert (report.embedded, report.reused) == (60 - 32, 32)


def bad_folder(folder: Path) -> Path:
    """Good, odd and bad files, as a user's folder has them."""
    folder.mkdir()
    pattern(0, 0).save(folder / "good.png")
    (folder / "truncated.jpg").write_bytes(truncated_jpeg())
    (folder / "words.jpg").write_text("these are words")
    (folder / "empty.png").write_bytes(b"")
    (folder / "bomb.png").write_bytes(png_bomb())
    (folder / "cmyk.jpg").write_bytes(encode(gradient().convert("CMYK"), "JPEG"))
    grey = Image.fromarray(np.linspace(0, 65535, 1536).reshape(32, 48).astype(np.uint16))
    (folder / "sixteen.png").write_bytes(encode(grey, "PNG"))
    (folder / "palette.gif").write_bytes(encode(gradient().quantize(16), "GIF"))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = gradient().transpose(Image.Transpose.ROTATE_90)
    (folder / "turned.jpg").write_bytes(encode(turned, "JPEG", exif=exif, quality=95))
    (folder / "secret.png").write_bytes(encode(gradient(), "PNG"))
    (folder / "secret.png").chmod(0)
    return folder


def test_bad_files_are_listed_and_the_rest_is_indexed_upright(tmp_path: Path, tiny: Path) -> None:
    source, out = bad_folder(tmp_path / "mixed"), tmp_path / "index"
    command = [sys.executable, "-m", "cbir.client.cli", "index", str(source), "--out", str(out), "--json"]
    command += ["--ensemble", str(tiny), "--device", "cpu", "--runtime", "torch"]
    if os.geteuid() == 0:
        # The superuser reads everything; without that right the test is the same for everybody.
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("running as root without setpriv: a file without read permission cannot be made")
        drop = "-dac_override,-dac_read_search"
        command = [setpriv, f"--bounding-set={drop}", f"--inh-caps={drop}", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    codes = {Path(s["uri"]).name: s["code"] for s in report["skipped"]}
    assert codes == {
        "truncated.jpg": "IMAGE_TRUNCATED",
        "words.jpg": "IMAGE_FORMAT",
        "empty.png": "IMAGE_EMPTY",
        "bomb.png": "IMAGE_TOO_MANY_PIXELS",
        "secret.png": "IMAGE_UNREADABLE",
    }
    assert all(s["reason"] and "\n" not in s["reason"] for s in report["skipped"])
    images = {image.id: image for image in IndexStore(out).open().gallery.images()}
    assert set(images) == {"good.png", "cmyk.jpg", "sixteen.png", "palette.gif", "turned.jpg"}
    assert (images["turned.jpg"].width, images["turned.jpg"].height) == (48, 32)
    # The next run knows the bad ones, tries the unreadable one again, and publishes nothing.
    again = index(source, out, tiny) if os.geteuid() else None
    assert again is None or not again.published


def test_a_source_without_a_good_image_changes_nothing(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path
) -> None:
    out = tmp_path / "index"
    live = index(pictures(1), out, tiny).version
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.jpg").write_text("words")
    with pytest.raises(SourceError, match="none of the 1 images could be read"):
        index(bad, out, tiny)
    assert IndexStore(out).open().name == live


def test_damage_is_mended_by_a_rebuild(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> None:
    source, out = pictures(3), tmp_path / "index"
    first = index(source, out, tiny)
    victim = out / "versions" / first.version / "images.parquet"
    victim.write_bytes(b"x" * victim.stat().st_size)
    again = index(source, out, tiny)
    assert again.published
    assert again.embedded == 0
    IndexStore(out).open(verify=True)
    rebuilt = index(source, out, tiny, FitSettings(rebuild=True))
    assert rebuilt.published
    assert rebuilt.version != again.version
    assert counts(rebuilt) == (12, 0, 12, 0, 0, 0)


def test_unknown_indexes_are_refused_before_any_work(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> None:
    for name in ("foo", "annoy:abc", "faiss:", "annoy:0"):
        with pytest.raises(ConfigurationError, match="there is no index"):
            index(pictures(1), tmp_path / "index", tiny, FitSettings(index=name))
    assert not (tmp_path / "index").exists()


def test_the_crop_of_another_ensemble_is_not_taken_over(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path
) -> None:
    source, out = pictures(1), tmp_path / "index"
    for path in source.rglob("*.png"):
        framed = Image.new("RGB", (72, 72), "white")
        framed.paste(Image.open(path), (12, 12))
        framed.save(path)
    border = tmp_path / "border.toml"
    border.write_text(tiny.read_text().replace('crop = "none"', 'crop = "border"'))
    boxes = []
    for ensemble in (tiny, border, tiny):
        index(source, out, ensemble)
        boxes.append(IndexStore(out).open().gallery[0].crop)
    assert boxes[0] == boxes[2]
    assert boxes[1] != boxes[0]


def test_a_gallery_of_one_picture_many_times(tmp_path: Path, tiny: Path) -> None:
    source = tmp_path / "same"
    source.mkdir()
    for i in range(60):
        pattern(0, 0).save(source / f"{i}.png")
    index(source, tmp_path / "index", tiny)
    retriever = Retriever.load(IndexStore(tmp_path / "index").open(), "cpu")
    found = retriever.search(retriever.vectors_of([3]), [SearchSpec()])[0]
    assert found.fused.min() == pytest.approx(1, abs=f16(2))
