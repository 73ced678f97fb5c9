"""The demo runs every command as a user would, and stops with a sentence when one of them fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cbir.indexer.samples import LABELS
from cbir.indexer.samples.sample_split import draw_sample

#: Random weights: what is tested is that the steps fit together.
ENSEMBLE = """
[ensemble]
name = "tiny"
crop = "none"
[[members]]
name = "one"
backend = "timm"
model = "test_resnet"
dim = 16
input = { size = 64 }
"""


@pytest.fixture
def ensemble(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(ENSEMBLE)
    return file


def demo(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cbir.client.cli", "demo", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=240)


def test_demo_on_samples(tmp_path: Path, ensemble: Path) -> None:
    done = demo(tmp_path, "--per-class", 5, "--ensemble", ensemble, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["images"], report["queries"]) == (4 * len(LABELS), len(LABELS))
    assert 0 <= report["map@10"] <= 1
    assert [len(answer["hits"]) for answer in report["search"]] == [10] * 6
    assert all(answer["expected"] in LABELS for answer in report["search"])
    with Image.open(tmp_path / report["picture"]) as picture:
        assert picture.width > 500
    assert f"MAP@10 {report['map@10']:.3f}" in done.stderr


def test_demo_on_own_images_without_labels(tmp_path: Path, ensemble: Path) -> None:
    (tmp_path / "pics").mkdir()
    for number in range(8):
        draw_sample("cat", number).save(tmp_path / f"pics/{number}.jpg")
    (tmp_path / "pics/broken.jpg").write_bytes(b"no image")
    done = demo(tmp_path, "pics", "--ensemble", ensemble, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "MAP@10 is not known" in done.stderr
    assert (tmp_path / "out/search.png").exists()
    assert sorted(path.suffix for path in (tmp_path / "out/queries").iterdir()) == [".jpg"] * 6
    assert not (tmp_path / "out/queries/broken.jpg").exists()


def test_demo_says_which_step_failed(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    draw_sample("cat", 1).save(tmp_path / "pics/1.jpg")
    done = demo(tmp_path, "pics", "--ensemble", "no-such-ensemble")
    assert done.returncode == 1
    assert "no-such-ensemble" in done.stderr
    assert "cbir: the demo stopped because `cbir index` ended with status 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_of_nothing(tmp_path: Path) -> None:
    done = demo(tmp_path, "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("cbir: there is no folder or file nowhere")
    assert list(tmp_path.iterdir()) == []
