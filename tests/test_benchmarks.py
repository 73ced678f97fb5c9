"""Benchmarks that want a GPU or an idle machine run everywhere, small, so that they can be trusted there."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
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
    assert (first["value"], first["reached"]) == (alone["engine"]["faster than the loop"], first["value"] >= 4)


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
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
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


def test_targets_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    targets = importlib.import_module("targets")

    def closed(kind: str, concurrency: int, rate: float, p50: float, mode: str = "unary") -> dict[str, Any]:
        return {"kind": kind, "concurrency": concurrency, "per_second": rate, "p50_ms": p50, "mode": mode}

    parts = {"event loop": 0.1, "gRPC": 0.1, "engine and models": 1.6, "generator": 0.1}
    flood = {
        "kind": "image", "fraction": 3.0, "arrivals": "poisson", "p99_ms": 800.0, "goodput_per_second": 54.0,
        "capacity_per_second": 80.0, "after_per_second": 40.0,
        "refused": {"count": 7, "p50_ms": 1.0, "p99_ms": 51.0},
        "cores": {"at capacity": parts, "flooded": {**parts, "engine and models": 1.2}},
    }  # fmt: skip
    bare = {
        "whole": {"p50_ms": 20.0}, "decode_workers": {"per_second": 300.0}, "forward": {"per_second": 100.0},
        "forward_batch": {"per_second": 100.0}, "search": {"p50_ms": 0.5}, "search_batch": {"per_second": 600.0},
    }  # fmt: skip
    served = {
        "closed": [
            closed("image", 1, 40, 21.5), closed("image", 32, 64, 400), closed("embedding", 1, 500, 0.9),
            closed("embedding", 64, 700, 30), closed("embedding", 64, 990, 30, "stream"),
        ],
        "limits": {"echo": [closed("embedding", 1, 900, 0.4), closed("embedding", 64, 1000, 9)], "bare": bare},
        "open": [flood],
    }  # fmt: skip
    search = {
        "random": {"kernel": "one: scan", "floor": 0.004, "one": 0.05, "batch, each": 0.005, "recall@10": 1.0},
    }
    rows = targets.targets({"serve compact": served, "search": search, "index compact": {"images": 3}})
    found = {row.name: (pytest.approx(row.value), row.is_met) for row in rows}
    assert found == {
        "compact: image alone, over bare": (1.5, False),
        "compact: images, 32 in flight / slower of decode and forward": (0.64, False),
        # In turn: 1 / (1/300 + 1/100 + 1/600) = 1000/15 a second.
        "compact: the same / decode, forward and search in turn": (0.96, True),
        "compact: images at 3 of the capacity: goodput / capacity": (0.9, True),
        "compact: images at 3 of the capacity: refusals p99": (51.0, False),
        "compact: embeddings, 64 in flight / empty echo": (0.7, True),
        "compact: bare search in batches / embeddings served": (600 / 700, False),
        "compact: embedding alone, p50": (0.9, True),
        "exact search, random: one query": (50.0, False),
        "exact search, random: 32, each": (5.0, True),
        "exact search, random: recall@10": (1.0, True),
    }
    told = {row.name: row.bound for row in rows}
    assert "the engine has 0.75 of its cores left" in told["compact: images at 3 of the capacity: goodput / capacity"]
    assert "in turn they allow 0.67" in told["compact: images, 32 in flight / slower of decode and forward"]
    text = targets.table(rows)
    assert "| compact: image alone, over bare | **1.5 ms** | at most 1 ms |" in text
    assert "| exact search, random: 32, each | 5 ms | at most 6 ms |" in text


def test_the_simulated_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    queue_ratio = importlib.import_module("targets").queue_ratio

    def ratio(one: float, batch: float, load: float) -> float:
        return queue_ratio(one, batch, 32, load, np.random.default_rng(0))

    # Nobody waits where there is next to nothing to do.
    assert ratio(0.01, 0.01, 0.001) == pytest.approx(1, abs=0.1)
    # One after the other at 0.7 it is M/D/1, whose p99 of waiting is about 6.6 services (Erlang); batches answer all
    # of theirs at the end, so that a query waits for those behind it too.
    assert 7 < ratio(0.01, 0.01, 0.7) < 13
    # Where a batch takes hardly longer than one query, hardly anybody waits for more than the batch before.
    assert ratio(0.01, 0.01 / 32, 0.7) <= 2.01


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
