"""The artifact store: atomic publish, refusal of what is not whole, rollback, garbage collection."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from cbir.core.artifacts import Gallery, GalleryImage, IndexStore, IndexVersion, Manifest
from cbir.core.artifacts.seal import Seal
from cbir.core.ensemble import EnsembleSpec, MemberSpec, member_fingerprint
from cbir.core.errors import ArtifactError
from cbir.core.images import CROP_VERSION, Box, Crop
from cbir.core.vote import VoteSettings

MEMBER = MemberSpec("m", "timm", "test_resnet")
ENSEMBLE = EnsembleSpec("tiny", (MEMBER,), Crop.NONE)


def image(name: str) -> GalleryImage:
    return GalleryImage(name, f"/x/{name}", None, 8, 8, name * 2, 2**63 + 5, Box(0, 0, 8, 8), "s", {})


def publish(store: IndexStore, images: list[GalleryImage]) -> IndexVersion:
    with store.lock():
        writer = store.begin()
        Gallery.from_images(images).write(writer.file("images.parquet"))
        np.save(writer.file("members/m/embeddings.npy"), np.eye(len(images), 4, dtype=np.float16))
        save_file({"mean": np.zeros(4, np.float32)}, writer.file("members/m/projection.safetensors"))
        writer.write_json("vote.json", VoteSettings({"m": 1.0}).to_json())
        facts = {"fingerprint": member_fingerprint(MEMBER, Crop.NONE), "index": "exact"}
        return writer.publish(Manifest("", "now", len(images), 0, ENSEMBLE, {"m": facts}, {}))


def reseal(store: IndexStore, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the live version's manifest as one would who can write into the index: under a seal of his own."""
    path = store.path / "versions" / store.current()
    (path / "manifest.json").write_text(json.dumps(change(json.loads((path / "manifest.json").read_text()))))
    seal = Seal.of(path.name, (path / "manifest.json").read_bytes())
    (path / "seal").write_text(seal.text())
    (store.path / "CURRENT").write_text(seal.text())


def test_publish_open_rollback_gc(tmp_path: Path) -> None:
    store = IndexStore(tmp_path)
    names = [publish(store, [image("a"), image("b")][: i + 1]).name for i in range(2)]
    names += [publish(store, [image("c")]).name]
    assert store.versions() == names
    assert store.open().name == store.current() == names[2]
    assert store.open().gallery.ids == ["c"]
    with store.lock():
        assert store.rollback() == names[1]
        assert store.open().gallery.ids == ["a", "b"]
        # The live version is kept even if it is not among the newest.
        assert store.collect(keep=1) == [names[0]]
        assert store.versions() == names[1:]
        with pytest.raises(ArtifactError, match="nothing to roll back to"):
            store.rollback()
    for act in (store.begin, store.rollback, lambda: store.collect(1)):
        with pytest.raises((RuntimeError, ArtifactError), match=r"holds its lock|nothing to roll back"):
            act()


def test_unchanged_files_are_linked(tmp_path: Path) -> None:
    store = IndexStore(tmp_path)
    first, second = (publish(store, [image("a")]) for _ in range(2))
    for name in ("images.parquet", "members/m/embeddings.npy"):
        assert (first.path / name).stat().st_ino == (second.path / name).stat().st_ino


def test_an_unpublished_version_is_never_seen(tmp_path: Path) -> None:
    store = IndexStore(tmp_path)
    live = publish(store, [image("a")]).name
    with store.lock():
        writer = store.begin()
        writer.write_json("vote.json", {})
    assert (store.versions(), store.current()) == ([live], live)
    with store.lock():  # the next writer clears what the last one left
        store.begin().abandon()
    assert [p.name for p in (tmp_path / "versions").iterdir()] == [live]


def test_what_is_not_whole_is_refused(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "index")
    with pytest.raises(ArtifactError, match="there is no index at") as caught:
        store.open()
    assert caught.value.reason == "INDEX_NOT_FOUND"
    version = publish(store, [image("a")])
    with pytest.raises(ArtifactError, match="has no version"):
        store.open("2001")
    with pytest.raises(ArtifactError, match="has no version"):
        store.open("../versions/" + version.name)

    def damaged(change: str) -> IndexStore:
        copy = IndexStore(tmp_path / change)
        shutil.copytree(store.path, copy.path)
        return copy

    copy = damaged("no-manifest")
    (copy.path / "versions" / version.name / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="only half copied") as caught:
        copy.open()
    assert caught.value.reason == "INDEX_INCOMPLETE"
    copy = damaged("short")
    with (copy.path / "versions" / version.name / "members/m/embeddings.npy").open("r+b") as file:
        file.truncate(20)
    with pytest.raises(ArtifactError, match=r"has 20 bytes in place of \d+") as caught:
        copy.open()
    assert caught.value.reason == "INDEX_INCOMPLETE"
    copy = damaged("flipped")
    path = copy.path / "versions" / version.name / "members/m/embeddings.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert copy.open(verify=False).embeddings("m").shape == (1, 4)  # sizes are right, and nothing else was asked
    for act in (lambda: copy.open(verify=True), lambda: copy.open().embeddings("m")):
        with pytest.raises(ArtifactError, match="does not match its checksum") as caught:
            act()
        assert caught.value.reason == "INDEX_CORRUPT"
    copy = damaged("future")
    reseal(copy, lambda manifest: {**manifest, "format": 99})
    with pytest.raises(ArtifactError, match="index format 99"):
        copy.open()


def test_other_ensembles_are_refused(tmp_path: Path) -> None:
    version = publish(IndexStore(tmp_path), [image("a")])
    version.check_ensemble(ENSEMBLE)
    for other, words in (
        (EnsembleSpec("o", (MemberSpec("n", "timm", "test_resnet"),), Crop.NONE), "with members m; this is"),
        (EnsembleSpec("o", (MemberSpec("m", "timm", "test_vit"),), Crop.NONE), "other weights, options, input or crop"),
        (EnsembleSpec("o", (MEMBER,), Crop.BORDER), "other weights, options, input or crop"),
    ):
        with pytest.raises(ArtifactError, match=words) as caught:
            version.check_ensemble(other)
        assert caught.value.reason == "INDEX_MISMATCH"


def test_an_index_of_an_earlier_release_is_usable_and_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    version = publish(IndexStore(tmp_path), [image("a")])
    version.check_ensemble(ENSEMBLE)
    assert not caplog.records
    facts = {**version.manifest.members["m"], "fingerprint": member_fingerprint(MEMBER, Crop.NONE, CROP_VERSION - 1)}
    monkeypatch.setitem(version.manifest.members, "m", facts)
    version.check_ensemble(ENSEMBLE)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "was made by an earlier release" in caplog.text
    with pytest.raises(ArtifactError, match="other weights, options, input or crop"):
        version.check_ensemble(EnsembleSpec("o", (MEMBER,), Crop.BORDER))


def test_two_writers_are_kept_apart(tmp_path: Path) -> None:
    with IndexStore(tmp_path).lock(), pytest.raises(ArtifactError, match="another process is writing"):  # noqa: SIM117
        with IndexStore(tmp_path).lock():
            pass


def test_damage_to_the_live_version_is_named_and_never_linked_on(tmp_path: Path) -> None:
    store = IndexStore(tmp_path)
    first = publish(store, [image("a")])
    victim = first.path / "members/m/embeddings.npy"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    # The same content again: the damaged file must not be linked into the new version.
    publish(store, [image("a")]).verify()
    good = json.loads((store.path / "versions" / store.current() / "manifest.json").read_text())
    for damage in ([], {}, {"format": 1}, {"format": 2}, None, "x"):
        reseal(store, lambda _, damage=damage: damage)
        with pytest.raises(ArtifactError, match=r"manifest.json is damaged|index format None"):
            store.open()
    reseal(store, lambda _: good)
    store.open(verify=True)
    (tmp_path / "CURRENT").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="CURRENT is damaged"):
        store.open()
    victim.write_bytes(b"no array")
    with pytest.raises(ArtifactError, match=r"embeddings.npy does not match its checksum"):
        first.embeddings("m")
