"""A power cut at any moment of an indexing run leaves the old version or the new one, whole.

The disk is modelled: what was written is there for sure only after an fsync of the file, and a name only after one of
its folder.  At every step of a real run, states that a disk may be left in are laid out in a folder of their own: with
nothing but what is sure, with everything, and with any part of what lies between.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cbir.core.artifacts import EmbeddingCache, IndexStore
from cbir.core.ensemble import load_ensemble
from cbir.indexer.build import RunSettings, build
from cbir.indexer.sources import open_sources

Names = dict[str, int]
#: Contents by inode: the bytes of a file, or the names in a folder.
State = dict[int, bytes | Names]

#: Steps after each of which the power may fail.
STEPS = ("fsync", "rename", "replace", "link", "mkdir", "unlink", "rmdir")


class Disk:
    """What of a folder is on the disk for sure, and what may be."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._held: dict[int, int] = {}
        self.sure: State = self.now()
        self.cuts: list[tuple[State, State]] = []

    def now(self) -> State:
        """What every program sees."""
        state: State = {}
        pending = [self.root]
        while pending:
            path = pending.pop()
            status = path.stat(follow_symlinks=False)
            if status.st_ino not in self._held:
                # As long as it is held, no other file gets its number.
                self._held[status.st_ino] = os.open(path, os.O_RDONLY)
            if stat.S_ISDIR(status.st_mode):
                inner = list(path.iterdir())
                pending += inner
                state[status.st_ino] = {p.name: p.stat(follow_symlinks=False).st_ino for p in inner}
            else:
                state[status.st_ino] = path.read_bytes()
        return state

    def synced(self, descriptor: int) -> None:
        number = os.fstat(descriptor).st_ino
        current = self.now()
        if number in current:
            self.sure[number] = current[number]

    def cut(self) -> None:
        self.cuts.append((dict(self.sure), self.now()))

    def close(self) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)

    def states(self, seeds: int) -> Iterator[State]:
        """For each cut what is sure, what is seen, and so many mixtures."""
        for number, (sure, seen) in enumerate(self.cuts):
            yield sure
            yield seen
            for seed in range(seeds):
                yield _mixture(sure, seen, random.Random(1000 * number + seed))


def _mixture(sure: State, seen: State, chance: random.Random) -> State:
    state: State = {}
    for number in {*sure, *seen}:
        old, new = sure.get(number), seen.get(number)
        if isinstance(old, dict) or isinstance(new, dict):
            before: Names = old if isinstance(old, dict) else {}
            after: Names = new if isinstance(new, dict) else {}
            kept = {}
            for name in {*before, *after}:
                choice = chance.choice((before, after))
                if name in choice:
                    kept[name] = choice[name]
            state[number] = kept
        else:
            # Pages reach the disk in any order; a file may have its length and none of its bytes.
            whole = new if new is not None else old or b""
            state[number] = chance.choice((old if old is not None else b"", whole, bytes(len(whole))))
            # What is only removed keeps its bytes for as long as a name on the disk leads to it.
            if old is not None and (new is None or old == new):
                state[number] = old
    return state


def _lay_out(state: State, number: int, path: Path) -> None:
    content = state.get(number, b"")
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    path.mkdir()
    for name, inner in content.items():
        _lay_out(state, inner, path / name)


@contextmanager
def watched(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def watch(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            disk.cut()
            if name == "fsync":
                return disk.synced(args[0])
            return act(*args, **options)

        return step

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, watch(name, getattr(os, name)))
        yield
    disk.cut()


def test_old_or_new_and_whole(
    pictures: Callable[..., Path], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RunSettings(device="cpu", runtime="torch", batch=8, workers=1, commit_seconds=0.0)
    (tmp_path / "root").mkdir()
    out = tmp_path / "root/index"
    ensemble = load_ensemble(tiny)
    old = build(open_sources([str(pictures(2))]), out, ensemble, settings)
    disk = Disk(tmp_path / "root")
    with watched(disk, monkeypatch):
        new = build(open_sources([str(pictures(4))]), out, ensemble, settings)
    found: list[str] = []
    place = tmp_path / "state"
    place.mkdir()
    root = disk.root.stat().st_ino
    for count, state in enumerate(disk.states(2)):
        _lay_out(state, root, place / str(count))
        store = IndexStore(place / str(count) / "index")
        version = store.open(verify=True)
        assert (version.name, len(version.gallery)) in ((old.version, old.images), (new.version, new.images))
        found.append(version.name)
        # The next indexer goes on from here: damaged blocks cost their rows, leftovers are swept.
        for folder in sorted(p for p in (store.path / "cache").glob("*") if p.is_dir()):
            EmbeddingCache(folder.parent, folder.name)
        with store.lock():
            store.begin().abandon()
    assert len(found) >= 200
    assert {*found} == {old.version, new.version}
    # When the indexer says that it is done, the new version is on the disk for sure.
    assert found[-4:] == [new.version] * 4
    disk.close()


def test_the_first_version_is_there_with_its_folders(
    pictures: Callable[..., Path], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    out = tmp_path / "root/a/b/index"
    disk = Disk(tmp_path / "root")
    with watched(disk, monkeypatch):
        settings = RunSettings(device="cpu", runtime="torch", batch=8, workers=1)
        done = build(open_sources([str(pictures(1))]), out, load_ensemble(tiny), settings)
    _lay_out(disk.cuts[-1][0], disk.root.stat().st_ino, tmp_path / "state")
    store = IndexStore(tmp_path / "state/a/b/index")
    assert store.open(verify=True).name == done.version
    blocks = list((store.path / "cache").glob("*/*.safetensors"))
    assert len(blocks) == len(list((out / "cache").glob("*/*.safetensors"))) > 0
    disk.close()
