"""Damage is found wherever it is, writers exclude each other, readers outlive collection, leftovers go."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_index import publish, read_all

from cbir.core.artifacts import EmbeddingCache, IndexStore
from cbir.core.errors import ArtifactError

#: Of every file, so many bytes are flipped in a run of the suite, the first and last ones among them; 0: all.
SAMPLED = int(os.environ.get("CBIR_FLIPPED_BYTES", "32"))


def files(store: IndexStore) -> list[Path]:
    """What a server reads of an index."""
    version = store.path / "versions" / store.current()
    return [store.path / "CURRENT", *sorted(p for p in version.rglob("*") if p.is_file())]


def places(size: int) -> list[int]:
    if not SAMPLED or size <= SAMPLED:
        return list(range(size))
    return sorted({*range(8), *range(size - 8, size), *np.linspace(0, size - 1, SAMPLED).astype(int).tolist()})


def refused(store: IndexStore, file: Path) -> None:
    """`cbir verify` and a start refuse it, and say which file it is; for the manifest and its seal, either."""
    named = {file.name, *(("CURRENT", "seal", "manifest.json") if file.name in ("CURRENT", "seal") else ())}
    for act in (lambda: store.open(verify=True), lambda: read_all(store.open())):
        with pytest.raises(ArtifactError) as caught:
            act()
        assert any(name in str(caught.value) for name in named) or "has no version" in str(caught.value)


@pytest.mark.parametrize("index", ["exact", "faiss:Flat", "annoy:1"])
def test_every_flipped_byte_is_refused_and_named(tmp_path: Path, index: str) -> None:
    store = IndexStore(tmp_path / "index")
    publish(store, 3, index)
    # The files that all kinds of index have were looked at with the first kind.
    for file in files(store) if index == "exact" else [p for p in files(store) if p.stem == "index"]:
        data = file.read_bytes()
        for place in places(len(data)):
            flipped = bytearray(data)
            flipped[place] ^= 1 << (place % 8)
            file.write_bytes(flipped)
            refused(store, file)
        file.write_bytes(data)
    read_all(store.open(verify=True))


def test_every_cut_file_is_refused_and_named(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "index")
    publish(store)
    for file in files(store):
        data = file.read_bytes()
        for size in sorted({len(data) * tenth // 10 for tenth in range(10)} | {len(data) - 1}):
            file.write_bytes(data[:size])
            refused(store, file)
        file.write_bytes(data + b"\0")
        refused(store, file)
        file.unlink()
        refused(store, file)
        file.write_bytes(data)
    read_all(store.open(verify=True))


def test_a_damaged_block_of_the_cache_costs_its_rows_and_nothing_else(tmp_path: Path) -> None:
    keys = [hashlib.sha256(bytes([i])).digest() for i in range(4)]
    cache = EmbeddingCache(tmp_path, "print")
    for pair in (keys[:2], keys[2:]):
        cache.put(pair, np.ones((2, 3), np.float16))
    block = min(cache.folder.glob("*.safetensors"))
    data = block.read_bytes()
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1
        block.write_bytes(flipped)
        assert len(EmbeddingCache(tmp_path, "print")) == 2
        assert not block.exists()
    # The same rows again: the block has the name of its bytes, so that there is one of it.
    for pair in (keys[:2], keys[2:]):
        cache.put(pair, np.ones((2, 3), np.float16))
    assert len(EmbeddingCache(tmp_path, "print")) == 4


def _write(path: str, started: Any, outcomes: Any) -> None:
    started.wait(20)
    try:
        publish(IndexStore(path))
        outcomes.put("published")
    except ArtifactError as error:
        outcomes.put(error.reason)


def test_of_many_writers_one_writes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    started, outcomes = context.Event(), context.Queue()
    store = IndexStore(tmp_path)
    with store.lock():
        writers = [context.Process(target=_write, args=(str(tmp_path), started, outcomes)) for _ in range(3)]
        for writer in writers:
            writer.start()
        started.set()
        assert [outcomes.get(timeout=20) for _ in writers] == ["INDEX_LOCKED"] * 3
    for writer in writers:
        writer.join(20)
    assert store.versions() == []
    publish(store)
    read_all(store.open(verify=True))


def test_a_lock_that_is_a_link_is_not_written_to(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "index").mkdir()
    (tmp_path / "index/.lock").symlink_to(victim)
    with pytest.raises(ArtifactError, match="cannot be written"), IndexStore(tmp_path / "index").lock():
        pass
    assert victim.read_text() == "mine"


def test_who_has_opened_a_version_reads_on_when_it_is_collected(tmp_path: Path) -> None:
    store = IndexStore(tmp_path)
    old = publish(store).name
    reader = IndexStore(tmp_path).open()
    publish(store, 4)
    with store.lock():
        assert store.collect(keep=0) == [old]
    assert not reader.path.exists()
    read_all(reader)
    reader.verify()


def test_a_version_that_is_collected_between_two_looks_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader saw CURRENT; before it opened the version, a newer one went live and the collector came by."""
    store = IndexStore(tmp_path)
    publish(store)
    other = IndexStore(tmp_path)
    open_now = IndexStore._open
    calls = []

    def late(self: IndexStore, *args: Any) -> Any:
        calls.append(args[0])
        if len(calls) == 1:
            monkeypatch.setattr(IndexStore, "_open", open_now)
            new = publish(other, 4).name
            with other.lock():
                other.collect(keep=0)
            monkeypatch.setattr(IndexStore, "_open", late)
            calls.append(new)
        return open_now(self, *args)

    monkeypatch.setattr(IndexStore, "_open", late)
    assert store.open().name == calls[1] == calls[2]


def test_leftovers_of_killed_writers_are_swept(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "index")
    version = publish(store)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    versions = store.path / "versions"
    shutil.copytree(version.path, versions / ".partial-x")
    shutil.copytree(version.path, versions / ".removed-x")
    (versions / ".removed-y").symlink_to(outside)
    (versions / "half").mkdir()
    (versions / "link").symlink_to(outside)
    (store.path / ".CURRENT-abcdef").touch()
    (version.path / ".seal-abcdef").touch()
    assert store.versions() == [version.name]
    with store.lock():
        store.begin().abandon()
        assert {p.name for p in versions.iterdir()} == {version.name, "half", "link"}
        store.collect(keep=1)
    assert [p.name for p in versions.iterdir()] == [version.name]
    assert not list(store.path.glob(".CURRENT-*"))
    assert not (version.path / ".seal-abcdef").exists()
    assert (outside / "kept").exists()
    read_all(store.open(verify=True))
