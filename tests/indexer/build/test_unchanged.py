"""An update of what has not changed: what is looked at, what is loaded, and that no change is missed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from images import pattern

from cbir.core.artifacts import IndexStore
from cbir.core.ensemble import load_ensemble
from cbir.indexer.build import IndexReport, RunSettings, build
from cbir.indexer.build.plan import Plan
from cbir.indexer.sources import open_sources

SETTINGS = RunSettings(device="cpu", runtime="torch", batch=8, workers=2)


def index(source: Path, out: Path, ensemble: Path) -> IndexReport:
    return build(open_sources([str(source)]), out, load_ensemble(ensemble), SETTINGS)


class Looks:
    """How often folders were listed, files asked about, and files opened by their names below a folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.listed = self.asked = self.opened = 0
        scandir, stat, open_file = os.scandir, os.stat, Path.open

        def count_listed(path: Any) -> Any:
            self.listed += not isinstance(path, int) and Path(path).is_relative_to(folder)
            return scandir(path)

        def count_asked(path: Any, **options: Any) -> os.stat_result:
            self.asked += options.keys() == {"dir_fd"}
            return stat(path, **options)

        def count_opened(path: Path, *arguments: Any, **options: Any) -> Any:
            self.opened += path.is_relative_to(folder)
            return open_file(path, *arguments, **options)

        monkeypatch.setattr(os, "scandir", count_listed)
        monkeypatch.setattr(os, "stat", count_asked)
        monkeypatch.setattr(Path, "open", count_opened)


def test_an_unchanged_folder_is_listed_once_and_no_more(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = pictures(5), tmp_path / "index"
    first = index(source, out, tiny)
    with monkeypatch.context() as patch:
        patch.setattr(Plan, "find", None)
        patch.setattr("cbir.indexer.build.raw_embeddings.RawEmbeddings.__init__", None)
        looks = Looks(patch, source)
        again = index(source, out, tiny)
    assert (again.published, again.version, again.images, again.reused) == (False, first.version, 20, 20)
    # The folders of four classes and the one above them.
    assert (looks.listed, looks.asked, looks.opened) == (5, 20, 0)


@pytest.mark.parametrize("room", [True, False])
def test_a_changed_folder_is_not_listed_twice(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    """What the look at it found is what is compared; where there is no room to keep that, it is listed again."""
    source, out = pictures(5), tmp_path / "index"
    index(source, out, tiny)
    pattern(0, 99).save(source / "class0" / "new.png")
    with monkeypatch.context() as patch:
        looks = Looks(patch, source)
        if not room:

            def full(*unused: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(tempfile, "TemporaryFile", full)
        report = index(source, out, tiny)
    assert (report.images, report.added, report.embedded) == (21, 1, 1)
    assert looks.asked == (21 if room else 42)
    assert not index(source, out, tiny).published


def _touch(folder: Path) -> None:
    os.utime(folder / "class1" / "000.png", ns=(5, 5))


def _grow(folder: Path) -> None:
    file = folder / "class1" / "000.png"
    time = file.stat().st_mtime_ns
    file.write_bytes(file.read_bytes() + b"\0")
    os.utime(file, ns=(time, time))


def _rename(folder: Path) -> None:
    (folder / "class1" / "000.png").rename(folder / "class1" / "zzz.png")


def _move(folder: Path) -> None:
    (folder / "class1" / "000.png").rename(folder / "class2" / "moved.png")


def _remove(folder: Path) -> None:
    (folder / "class1" / "000.png").unlink()


def _swap(folder: Path) -> None:
    first, second = folder / "class1" / "000.png", folder / "class1" / "001.png"
    first.rename(folder / "other")
    second.rename(first)
    (folder / "other").rename(second)


def _break(folder: Path) -> None:
    (folder / "class1" / "link.png").symlink_to("nowhere.png")


def _leave_out(folder: Path) -> None:
    (folder / "class1" / "photo.psd").write_bytes(b"8BPS")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("told") / "pictures"
    for kind in range(3):
        (folder / f"class{kind}").mkdir(parents=True)
        for number in range(2):
            file = folder / f"class{kind}" / f"{number:03}.png"
            file.write_bytes(bytes(kind + 10 * number + 1))
            os.utime(file, ns=(kind, number))
    sources = open_sources([str(folder)])
    assert len(sources.scan()) == 6
    return folder, sources.read_parts()


@pytest.mark.parametrize("change", [_touch, _grow, _rename, _move, _remove, _swap, _break, _leave_out])
def test_no_change_of_a_folder_is_missed(
    told: tuple[Path, list[dict[str, Any]]], tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder, parts = told
    copy = tmp_path / "pictures"
    shutil.copytree(folder, copy)
    before = [{**parts[0], "parts": [{"uri": str(copy), "stamp": parts[0]["parts"][0]["stamp"]}]}]
    assert open_sources([str(copy)]).same_as(before), "copied with its times"
    (copy / "notes.txt").write_text("no image")
    assert open_sources([str(copy)]).same_as(before)
    change(copy)
    sources = open_sources([str(copy)])
    assert not sources.same_as(before)
    assert sorted(sources.scan(), key=lambda image: image.id) == open_sources([str(copy)]).scan()
    assert sources.read_parts()[0]["parts"] == [{"uri": str(copy), "stamp": sources._sources[0].stamp}]  # type: ignore[attr-defined]


def test_other_folders_and_other_exclusions_are_not_the_same(told: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, parts = told
    assert open_sources([str(folder)]).same_as(parts)
    assert not open_sources([str(folder)], exclude=["class0"]).same_as(parts)
    assert not open_sources([str(folder / "class0")]).same_as(parts)
    assert not open_sources([str(folder)]).same_as([{**parts[0], "parts": []}]), "as versions of before told"


def test_an_unchanged_index_loads_no_library_of_models(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path
) -> None:
    """Each of them takes longer to load than a hundred thousand files to look at."""
    source, out = pictures(2), tmp_path / "index"
    name = index(source, out, tiny).version
    script = (
        "import sys\nfrom cbir.client.cli.program import main\n"
        f"code = main(['index', {str(source)!r}, '--out', {str(out)!r}, '--device', 'cpu', '--runtime', 'torch'])\n"
        "print(code, sorted({'torch', 'pyarrow', 'numba', 'faiss', 'scipy'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "0 []", done.stderr
    assert f"nothing changed, still version {name}" in done.stderr
    assert IndexStore(out).versions() == [name]
