"""Which ensemble ``cbir index`` takes: the one that is named, else that of the index, else the default."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cbir.indexer.build
from cbir.core.artifacts import IndexStore
from cbir.core.ensemble import EnsembleSpec, load_ensemble
from cbir.core.errors import ArtifactError
from cbir.core.images import Crop
from cbir.core.search import Retriever
from cbir.indexer.build import RaySettings, RunSettings, build
from cbir.indexer.commands import index
from cbir.indexer.sources import open_sources

Run = Callable[..., tuple[dict[str, object], str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command and gives its document and what it said."""

    def command(*arguments: object) -> tuple[dict[str, object], str]:
        parser = argparse.ArgumentParser()
        index.add_arguments(parser)
        given = parser.parse_args([*map(str, arguments), "--device", "cpu", "--runtime", "torch", "--json"])
        assert index.run(given) == 0
        said = capsys.readouterr()
        return json.loads(said.out), said.err

    return command


def test_an_index_keeps_its_ensemble_until_another_is_named(
    run: Run, pictures: Callable[..., Path], tmp_path: Path, tiny: Path
) -> None:
    source, out = pictures(2), tmp_path / "index"
    document, said = run(source, "--out", out, "--ensemble", tiny)
    assert (document["ensemble"], document["ensemble_kept"]) == ("tiny", False)
    assert "kept the ensemble" not in said

    pictures(3)
    document, said = run(source, "--out", out)
    assert (document["ensemble"], document["ensemble_kept"], document["embedded"]) == ("tiny", True, 4)
    assert "kept the ensemble of the index, tiny (resnet, vit); --ensemble chooses another" in said

    other = tmp_path / "other.toml"
    other.write_text(tiny.read_text().replace('name = "tiny"', 'name = "other"'))
    document, said = run(source, "--out", out, "--ensemble", other)
    assert (document["ensemble"], document["ensemble_kept"], document["published"]) == ("other", False, True)
    assert run(source, "--out", out)[0]["ensemble"] == "other"

    # Nothing tells the ensemble of a damaged version, and another one would embed everything anew.
    for manifest in out.glob("versions/*/manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(ArtifactError, match="name the ensemble"):
        run(source, "--out", out)
    assert run(source, "--out", out, "--ensemble", other)[0]["reused"] == 12


def test_a_new_index_has_the_default_ensemble(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Asked(Exception):
        """Instead of an index, which would take the networks' time."""

    def asked(sources: object, out: Path, ensemble: EnsembleSpec, *_: object, **__: object) -> None:
        raise Asked(ensemble.name)

    monkeypatch.setattr("cbir.indexer.build.build", asked)
    parser = argparse.ArgumentParser()
    index.add_arguments(parser)
    with pytest.raises(Asked, match=r"^lite$"):
        index.run(parser.parse_args([str(tmp_path), "--out", str(tmp_path / "index")]))


def test_an_index_of_the_compact_ensemble_that_had_three_members_goes_on(
    run: Run, pictures: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = pictures(2), tmp_path / "index"
    vit = {
        "name": "vit", "backend": "timm", "model": "levit_128s", "weights": "package:compact-vit.safetensors",
        "options": {
            "img_size": 64, "stem_type": "s8", "embed_dim": [128, 256], "num_heads": [4, 8], "depth": [3, 3],
            "key_dim": 32, "down_op": "subsample", "num_classes": 256,
        },
        "input": {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
        "dim": 256, "metric": "glrt", "weight": 0.1, "index": "auto", "text": True, "mirror": False,
    }  # fmt: skip
    now = load_ensemble("compact")
    assert "vit" not in [member.name for member in now.members]
    # As manifests of earlier releases have it.
    before = EnsembleSpec.from_json({**now.to_json(), "members": [*now.to_json()["members"], vit]})
    settings = RunSettings(device="cpu", runtime="torch")
    build(open_sources([str(source)]), out, before, settings)

    pictures(3)
    document, said = run(source, "--out", out)
    assert (document["ensemble"], document["embedded"], document["reused"]) == ("compact", 4, 8)
    assert "compact (convnext, resnetv2, vit)" in said
    version = IndexStore(out).open(verify=True)
    assert version.manifest.ensemble == before
    assert Retriever.load(version, "cpu").members == ("convnext", "resnetv2", "vit")
    # Named, it is the ensemble of today, for which nothing is embedded anew.
    document, _ = run(source, "--out", out, "--ensemble", "compact")
    assert (document["embedded"], document["published"]) == (0, True)
    assert IndexStore(out).open().manifest.ensemble.crop is Crop.CONTENT


def test_options_of_a_cluster_reach_the_run(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[RunSettings] = []

    def build(
        sources: object, out: Path, ensemble: EnsembleSpec, settings: RunSettings, *_: object, **__: object
    ) -> None:
        taken.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(cbir.indexer.build, "build", build)
    parser = argparse.ArgumentParser()
    index.add_arguments(parser)
    options = "--runner ray --ray-address auto --ray-workers 3 --ray-cpus 2 --ray-gpus 0.5 --ray-blocks s3://b/run"
    source = ["--out", str(tmp_path / "index"), "--ensemble", str(tiny), str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        index.run(parser.parse_args([*options.split(), *source]))
    assert taken[0].runner == "ray"
    assert taken[0].ray == RaySettings("auto", 3, 2.0, 0.5, "s3://b/run")
    worker = taken[0].for_a_worker()
    assert (worker.runner, worker.device, worker.workers) == ("local", "cuda", 2)
    for wrong in ("--ray-gpus -1", "--ray-workers 0", "--runner spark"):
        with pytest.raises(SystemExit):
            parser.parse_args([*wrong.split(), *source])


@pytest.mark.skipif(sys.platform != "linux", reason="the scheduling policy is Linux's")
def test_in_the_background_it_takes_what_others_leave(tmp_path: Path) -> None:
    """All its threads and what they start, on a quarter of the cores; in another process, because it is for good."""
    told = subprocess.run(
        [sys.executable, "-c", _POLICIES, str(tmp_path / "nothing"), str(tmp_path / "index")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    few = max(1, len(os.sched_getaffinity(0)) // 4)
    assert json.loads(told.stdout) == [[os.SCHED_IDLE, few]] * 4


#: Says by what policy a thread that was there before runs, the main one, one started after, and a process.
_POLICIES = """
import argparse, json, os, subprocess, sys, threading
from contextlib import suppress
from cbir.core.errors import CbirError
from cbir.indexer.commands import index
def policy():
    thread = threading.get_native_id()
    return [os.sched_getscheduler(thread), len(os.sched_getaffinity(thread))]
told, go_on = [], threading.Event()
def before():
    go_on.wait(20)
    told.append(policy())
early = threading.Thread(target=before)
early.start()
parser = argparse.ArgumentParser()
index.add_arguments(parser)
with suppress(CbirError):
    index.run(parser.parse_args([sys.argv[1], "--out", sys.argv[2], "--background"]))
go_on.set()
early.join()
told.append(policy())
later = threading.Thread(target=lambda: told.append(policy()))
later.start()
later.join()
ask = "import os; print([os.sched_getscheduler(0), len(os.sched_getaffinity(0))])"
told.append(json.loads(subprocess.run([sys.executable, "-c", ask], capture_output=True, check=True).stdout))
print(json.dumps(told))
"""
