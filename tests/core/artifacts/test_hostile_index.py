"""An index from a stranger: it runs no code, names nothing outside itself, and is read as it was checked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_index import publish, read_all, reseal

from cbir.core.artifacts import IndexStore, Manifest
from cbir.core.artifacts.version_files import VersionFiles, is_file_name
from cbir.core.errors import ArtifactError, CbirError


@pytest.fixture
def store(tmp_path: Path) -> IndexStore:
    store = IndexStore(tmp_path / "index")
    publish(store)
    return store


def refusal(store: IndexStore, version: str | None = None) -> str:
    """Why the index is refused, at verify and at a plain start alike."""
    reasons = set()
    for act in (lambda: store.open(version, verify=True), lambda: read_all(store.open(version))):
        with pytest.raises(ArtifactError) as caught:
            act()
        reasons.add(caught.value.reason)
    assert len(reasons) == 1
    return reasons.pop()


def test_options_in_a_manifest_reach_no_backend(store: IndexStore) -> None:
    for options in (
        {"pretrained": "/tmp/x.pkl", "weights_only": False},
        {"checkpoint_path": "x"},
        {"act_layer": "a/b"},
    ):

        def ask(manifest: dict[str, Any], options: dict[str, Any] = options) -> dict[str, Any]:
            manifest["ensemble"]["members"][0]["options"] = options
            return manifest

        reseal(store, ask)
        assert refusal(store) == "INDEX_REFUSED"


@pytest.mark.parametrize("weights", ["/etc/passwd", "w.pth", "hf-hub:a/b", "../../w.bin"])
def test_weights_in_a_manifest_are_files_of_numbers(store: IndexStore, weights: str) -> None:
    def ask(manifest: dict[str, Any]) -> dict[str, Any]:
        manifest["ensemble"]["members"][0]["weights"] = weights
        return manifest

    reseal(store, ask)
    assert refusal(store) == "INDEX_REFUSED"


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd", "../x", "members/../../x", "members/./x", "a//b", "", ".", "..", "a/..", "~/x", ".hidden",
        "members/m/.x", "a\\b", "a\0b", "a\n", "x" * 200, "a/b/c/d/e",
    ],
)  # fmt: skip
def test_names_that_lead_out_are_refused(store: IndexStore, name: str) -> None:
    assert not is_file_name(name)
    fact = {"size": 1, "sha256": "0" * 64}
    reseal(store, lambda manifest: {**manifest, "files": {**manifest["files"], name: fact}})
    assert refusal(store) == "INDEX_CORRUPT"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: {**m, "files": {}},
        lambda m: {**m, "files": {k: v for k, v in m["files"].items() if "embeddings" not in k}},
        lambda m: {**m, "files": {k: v for k, v in m["files"].items() if k != "vote.json"}},
        lambda m: {**m, "files": {k: {**v, "size": -1} for k, v in m["files"].items()}},
        lambda m: {**m, "files": {k: {**v, "size": True} for k, v in m["files"].items()}},
        lambda m: {**m, "files": {k: {**v, "sha256": ""} for k, v in m["files"].items()}},
        lambda m: {**m, "members": {}},
        lambda m: {**m, "members": {**m["members"], "other": m["members"]["m"]}},
        lambda m: {**m, "members": {"m": {**m["members"]["m"], "fingerprint": "../x"}}},
        lambda m: {**m, "members": {"m": {**m["members"]["m"], "index": "annoy:9"}}},
        lambda m: {**m, "members": {"m": {**m["members"]["m"], "index": "os:system"}}},
        lambda m: {**m, "images": "many"},
        lambda m: {**m, "version": "another"},
        lambda m: {**m, "ensemble": {**m["ensemble"], "members": []}},
        lambda m: {**m, "ensemble": {**m["ensemble"], "members": m["ensemble"]["members"] * 2}},
        lambda m: {**m, "further": 1},
        lambda m: [m] * 2,
        lambda m: {**m, "format": 1},
    ],
)  # fmt: skip
def test_a_manifest_that_vouches_for_less_than_what_is_read_is_refused(
    store: IndexStore, change: Callable[[dict[str, Any]], Any]
) -> None:
    reseal(store, change)
    assert refusal(store) == "INDEX_CORRUPT"


def test_deep_json_and_endless_numbers_are_refused(store: IndexStore) -> None:
    path = store.path / "versions" / store.current()
    for text in (
        "[" * 100_000,
        '{"format": ' + "9" * 10_000 + "}",
        '{"format": NaN}',
        "\ud800".encode("utf-8", "surrogatepass"),
    ):
        data = text if isinstance(text, bytes) else text.encode()
        with pytest.raises(ArtifactError):
            Manifest.parse(data, path, sealed=True)


@pytest.mark.parametrize(
    "place", ["versions", "version", "members", "members/m", "file", "manifest", "seal", "CURRENT"]
)
def test_links_are_not_followed(store: IndexStore, tmp_path: Path, place: str) -> None:
    version = store.path / "versions" / store.current()
    victim = {
        "versions": version.parent,
        "version": version,
        "members": version / "members",
        "members/m": version / "members/m",
        "file": version / "members/m/embeddings.npy",
        "manifest": version / "manifest.json",
        "seal": version / "seal",
        "CURRENT": store.path / "CURRENT",
    }[place]
    outside = tmp_path / "outside"
    shutil.move(victim, outside)
    victim.symlink_to(outside)
    assert refusal(store) == "INDEX_LINKED"
    if place == "version":
        assert refusal(store, version.name) == "INDEX_LINKED"


def test_a_pipe_or_a_folder_in_place_of_a_file_holds_nobody_up(store: IndexStore) -> None:
    file = store.path / "versions" / store.current() / "vote.json"
    file.unlink()
    os.mkfifo(file)
    assert refusal(store) == "INDEX_LINKED"
    file.unlink()
    file.mkdir()
    assert refusal(store) == "INDEX_LINKED"


@pytest.mark.parametrize("name", ["..", ".", "../x", "/etc", "a/b", "", "-x", ".partial-x", "a\nb", "x" * 129])
def test_names_of_versions_stay_in_the_folder(store: IndexStore, name: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        store.open(name) if name else store._open(name, None, True)
    assert caught.value.reason == "VERSION_NOT_FOUND"
    (store.path / "CURRENT").write_text(f"{name}\n")
    with pytest.raises(ArtifactError) as caught:
        store.open()
    assert caught.value.reason == "INDEX_CORRUPT"


def test_what_was_checked_is_what_is_read(store: IndexStore, tmp_path: Path) -> None:
    """Between the check and the use somebody puts other files in place, links among them."""
    version = store.open(verify=True)
    wanted = np.array(version.embeddings("m"))
    for name in version.manifest.files:
        file = version.path / name
        file.unlink()
        file.symlink_to("/etc/passwd") if name == "vote.json" else file.write_bytes(b"other")
    read_all(version)
    np.testing.assert_array_equal(version.embeddings("m"), wanted)
    assert version.vote.weights == {"m": 1.0}


def test_a_file_that_changes_in_place_after_the_check_is_not_parsed(store: IndexStore) -> None:
    version = store.open(verify=True)
    file = version.path / "vote.json"
    data = file.read_bytes()
    file.write_bytes(data.replace(b"1.0", b"9.0"))  # the same file, the same size
    with pytest.raises(ArtifactError, match="changed while it was read"):
        _ = version.vote


def test_descriptors_are_closed_with_the_version(store: IndexStore) -> None:
    def count() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    before = count()
    version = store.open(verify=True)
    assert count() == before + len(version.manifest.files)
    vectors = version.embeddings("m")
    del version
    assert count() <= before + 1  # the mapping's own
    assert vectors.shape == (3, 4)
    incomplete = dict(store.open().manifest.files)
    incomplete["vote.json"] = {**incomplete["vote.json"], "size": 1}
    with pytest.raises(ArtifactError, match="in place of 1"):
        VersionFiles(store.path, store.current(), incomplete)
    del vectors
    assert count() == before


def test_an_index_from_before_seals_is_read(store: IndexStore) -> None:
    path = reseal(store, lambda manifest: {**manifest, "format": 1})
    (path / "seal").unlink()
    (store.path / "CURRENT").write_text(path.name + "\n")
    read_all(store.open(verify=True))
    # Whoever drops the seal of a sealed version does not make an old one of it.
    reseal(store, lambda manifest: {**manifest, "format": 2})
    (path / "seal").unlink()
    (store.path / "CURRENT").write_text(path.name + "\n")
    assert refusal(store) == "INDEX_CORRUPT"


def test_a_native_loader_never_sees_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Annoy maps its file and follows the offsets in it: flipped bytes were a segmentation fault."""
    pytest.importorskip("annoy")
    seen: list[Any] = []
    monkeypatch.setattr("cbir.core.artifacts.index_version.load_index", lambda *args: seen.append(args))
    store = IndexStore(tmp_path / "index")
    version = publish(store, 300, "annoy:3")
    file = version.path / "members/m/index.ann"
    data = bytearray(file.read_bytes())
    for place in range(0, len(data), 7):
        data[place] ^= 0xFF
    file.write_bytes(data)
    opened = store.open()
    with pytest.raises(ArtifactError, match=r"index\.ann does not match its checksum"):
        opened.vector_index("m", "cpu", opened.embeddings("m"))
    assert seen == []


def test_members_of_one_name_are_refused_whatever_they_hold(store: IndexStore) -> None:
    manifest = json.loads((store.path / "versions" / store.current() / "manifest.json").read_text())
    manifest["ensemble"]["members"][0]["name"] = "../m"
    with pytest.raises((ValueError, CbirError)):
        Manifest.from_json(manifest)
