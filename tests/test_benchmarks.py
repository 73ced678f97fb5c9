"""Benchmarks that want a GPU or an idle machine run everywhere, small, so that they can be trusted there."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, out: Path, *arguments: str) -> dict:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--set", "tiny", "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| engine |" in done.stdout
    return json.loads((out / "results.json").read_text())


def test_operations_of_fused_attention_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    peak = importlib.import_module("peak")
    layer = torch.nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True).eval()
    # Five tokens of 8 components: into queries, keys and values, these by each other, out, and the two products behind.
    by_hand = 2 * (5 * 8 * 24 + 5 * 5 * 8 + 5 * 5 * 8 + 5 * 8 * 8 + 2 * 5 * 8 * 16)
    assert peak.operations(lambda: layer(torch.zeros(1, 5, 8))) == by_hand


def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    small = "--gallery 100 --side 96 --matrix 128 --copy 8 --batch 3 --batches 2 --repeats 2 --singles 3"
    result = run("gpu.py", tmp_path, "--device", "cpu", "--runtime", "torch", *small.split())
    assert result["members"] == {"resnet": "torch-cpu f32", "vit": "torch-cpu f32"}
    assert set(result["warm-up"]["sizes"]) <= {1, 2, 3}
    # test_resnet and test_vit at 160 px, by torch's own counter.
    assert 1e8 < result["operations per image"] < 1e9
    rates, shares = result["images per second"], result["shares of peak products"]
    expected = rates["engine"] * result["operations per image"] / result["f32 products, peak"]
    assert abs(shares["engine"] / expected - 1) < 1e-6
    parts = result["one in flight, p50 ms"]
    assert 0 < max(parts["decode"], parts["embed"]) < parts["whole"]


def test_the_users_loop_and_the_engine_are_compared_on_the_same_networks(tmp_path: Path) -> None:
    result = run(
        "user_loop.py", tmp_path, "--runtime", "torch", "--gallery", "100", "--queries", "3", "--rounds", "1",
        "--batch", "2", "--matrix", "128", "--side", "160",
    )  # fmt: skip
    assert result["agreement with the loop"] > 0.9999
    alone = result["one image"]
    ratio = alone["loop"]["p50 ms"] / alone["engine"]["p50 ms"]
    assert abs(alone["engine"]["faster than the loop"] / ratio - 1) < 1e-6
    assert set(result["batches of 2"]) == {"loop", "engine", "bare float32 batches"}
    first = result["ratios"][0]
    assert (first["value"], first["reached"]) == (alone["engine"]["faster than the loop"], first["value"] >= 5.7)
    # The peak of products in float32 is what the loop takes by its share of it.
    assert first["limit"] == pytest.approx(1 / alone["loop"]["share of peak"])


def test_refusals_are_priced_in_every_way() -> None:
    options = "--rates 200 --channels 1,2 --seconds 0.5 --json"
    command = [sys.executable, str(ROOT / "benchmarks" / "refusals.py"), *options.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout)["prices"]
    assert [(row["way"], row["channels"]) for row in rows] == [
        (way, channels) for channels in (1, 2) for way in ("answered", "refused", "turned away")
    ]
    for row in rows:
        assert row["generator_ms"] > 0
        # The one call that is taken and held up, at most one a method, and those that wait behind it.
        assert row["late"] * 100 <= (4 if row["way"] == "turned away" else 0)


def test_small_galleries_are_drawn_from_what_is_held_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/quality"))
    retrieval, small = importlib.import_module("retrieval"), importlib.import_module("small_gallery")
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for kind, count in (("cat", 20), ("dog", 20), ("fox", 5)):
            for number in range(1, count + 1):
                file.writestr(f"photos/{kind}/image_{number:04d}.jpg", f"{kind} {number}")
    gallery, queries = retrieval.split(archive, tmp_path / "whole")
    assert sorted(path.name for path in (queries / "cat").iterdir()) == [
        f"image_00{n:02d}.jpg" for n in (5, 10, 15, 20)
    ]
    assert len(list((gallery / "dog").iterdir())) == 16
    assert sum(len(list(folder.glob("*/*"))) for folder in retrieval.split(archive, tmp_path / "few", most=3)) == 9

    drawn = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        mine, asked = small.draw(gallery, queries, tmp_path / name, 2, 6, seed)
        drawn[name] = sorted(path.relative_to(mine).as_posix() for path in mine.glob("*/*"))
        assert len(drawn[name]) == 12
        assert not any("fox" in path for path in drawn[name])
        assert len(list(asked.glob("*/*"))) == 8
        assert all((gallery / path).is_file() for path in drawn[name])
    assert drawn["a"] == drawn["b"] != drawn["c"]
    with pytest.raises(SystemExit, match="2 classes of 6 images, not 3"):
        small.draw(gallery, queries, tmp_path / "d", 3, 6, 0)


def test_servers_are_compared_within_their_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    compared = importlib.import_module("alternation").compared

    def rounds(*rates: float) -> list[dict[str, float]]:
        return [{"per_second": rate, "p50_ms": 1000 / rate, "p99_ms": 2000 / rate} for rate in rates]

    # The machine got twice as fast in the middle, and the second server is always a quarter faster.
    first, second = compared({"a:1": rounds(100, 200, 400), "b:2": rounds(125, 250, 500)})
    assert (first["ratio"], first["per_second"], first["p50_ms"]) == (1, 200, 5)
    assert (second["ratio"], second["ratio_low"], second["ratio_high"], second["p99_ms"]) == (1.25, 1.25, 1.25, 8)
    # Quartiles of 1/2, 1, 3/2, 2 and 5/2.
    _, uneven = compared({"a:1": rounds(*[2] * 5), "b:2": rounds(1, 2, 3, 4, 5)})
    assert (uneven["ratio_low"], uneven["ratio"], uneven["ratio_high"]) == (1, 1.5, 2)
