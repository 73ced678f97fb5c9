"""Fine-tuning: every objective teaches, members go on from members, the command says what it does."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from cbir.client.cli.program import main
from cbir.core.artifacts import IndexStore
from cbir.core.ensemble import load_ensemble
from cbir.core.errors import ConfigurationError, EnsembleError
from cbir.core.search import Retriever
from cbir.core.vote import SearchSpec
from cbir.indexer.build import RunSettings, build
from cbir.indexer.commands import train as command
from cbir.indexer.sources import open_sources
from cbir.indexer.train import (
    OBJECTIVE_NAMES,
    OBJECTIVES,
    FinetuneRecipe,
    StudentSpec,
    TrainingProgress,
    finetune_member,
)
from cbir.indexer.train.finetune import balanced_batches

SETTINGS = RunSettings(device="cpu", runtime="torch")
RECIPE = FinetuneRecipe(sizes=((32, 1.0),), epochs=15, batch=16, train_blocks=1.0, lr=5e-3, patience=0)
STUDENT = StudentSpec("tuned", "test_resnet")


def test_batches_are_balanced_and_repeatable() -> None:
    codes = np.repeat(np.arange(6), [3, 5, 20, 9, 4, 7])
    rows = np.flatnonzero(codes != 2)
    batches = balanced_batches(rows, codes, FinetuneRecipe(batch=14, per_class=4))
    before = np.random.get_state()[1].copy()
    first = batches(0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert len(first) == len(rows) // 12
    for batch in first:
        assert np.unique(codes[batch], return_counts=True)[1].tolist() == [4, 4, 4]
        assert 2 not in codes[batch]
    assert all((a == b).all() for a, b in zip(first, batches(0), strict=True))
    assert any((a != b).any() for a, b in zip(first, batches(1), strict=True))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_teaches(pictures: Callable[..., Path], tmp_path: Path, objective: str) -> None:
    reports: list[TrainingProgress] = []
    recipe = replace(RECIPE, objective=objective)
    sources = open_sources([str(pictures(14))])
    trained = finetune_member(sources, STUDENT, recipe, tmp_path / "out", SETTINGS, on_training=reports.append)
    assert trained.map_at_10 is not None
    before, after = trained.map_at_10
    assert after > before + 0.2
    assert trained.curves.read_bytes().startswith(b"\x89PNG")
    facts = json.loads((tmp_path / "out" / "tuned.json").read_text())
    assert (facts["objective"], facts["held_out"]) == (objective, 12)
    measured = [point["map@10"] for point in facts["history"] if "map@10" in point]
    assert len(measured) == 16
    assert (measured[0], max(measured)) == (before, after)


def test_a_member_is_frozen_trained_indexed_and_searched(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, capsys: Any
) -> None:
    source, out = pictures(10), tmp_path / "out"
    for name in ("first", "second"):
        start = ["--ensemble", str(tiny), "--member", "resnet"]
        if name == "second":
            start = ["--ensemble", str(out / "first.toml"), "--train-blocks", "1", "--lr", "0.01"]
        arguments = [str(source), "--out", str(out), "--objective", "glrt", "--name", name, "--epochs", "2"]
        assert main(["train", *arguments, *start, "--validation", "0", "--device", "cpu", "--json"]) == 0
        said = capsys.readouterr()
        assert re.search(r"training the last (1|3) of 5 blocks: 0\.\d\d of 0\.\d\d million parameters", said.err)
        assert json.loads(said.out)["map_at_10"] is None
    # The second went on from the first: what is frozen is equal, what is trained is not.
    first, second = (load_file(out / f"{name}.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    same = {name for name in first if first[name].equal(second[name])}
    assert {name for name in same if name.startswith("layer4")} == set()
    assert {name for name in first if name.startswith(("conv1", "bn1", "layer1", "layer2", "layer3"))} <= same
    ensemble = load_ensemble(out / "second.toml")
    assert (ensemble.members[0].input.size, ensemble.members[0].dim, str(ensemble.crop)) == (32, 16, "none")
    build(open_sources([str(source)]), tmp_path / "index", ensemble, SETTINGS)
    retriever = Retriever.load(IndexStore(tmp_path / "index").open(), "cpu")
    found = retriever.search(retriever.vectors_of([7]), [SearchSpec(limit=3)])[0]
    assert int(found.rows[0]) == 7


def test_ctrl_c_keeps_the_run(
    pictures: Callable[..., Path], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def report(self: Any, progress: TrainingProgress) -> None:
        steps.append(progress.step)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(command._Reporter, "__call__", report)
    arguments = ["train", str(pictures(6)), "--out", str(tmp_path / "out"), "--objective", "triplet", "--model"]
    arguments += ["test_resnet", "--sizes", "32", "--epochs", "4", "--batch", "8", "--device", "cpu"]
    assert main(arguments) == 130
    assert "the same command goes on from" in capsys.readouterr().err
    assert not (tmp_path / "out" / "student.safetensors").exists()
    assert main(arguments) == 0
    assert steps == list(range(1, 9))
    assert "MAP@10 of held-out images" in capsys.readouterr().err


def test_images_without_a_label_are_counted(pictures: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    folder = pictures(4)
    rows = [f"{folder}/class{k}/{i:03d}.png,{k if k < 2 else ''}" for k in range(3) for i in range(4)]
    manifest = tmp_path / "list.csv"
    manifest.write_text("path,label\n" + "\n".join(rows) + "\n")
    arguments = ["--objective", "cross-entropy", "--model", "test_resnet", "--sizes", "32", "--epochs", "1"]
    assert main(["train", str(manifest), "--out", str(tmp_path / "out"), *arguments, "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    assert "8 images of 2 classes (4 images without a label are left out)" in said
    assert "left out: 4 without a label" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--objective", "distill", "--model", "test_resnet"], "--objective distill needs --teacher"),
        (["--teacher", "TINY"], "give either --ensemble (and --member) or --model"),
        (["--model", "test_resnet", "--ensemble", "TINY"], "give either --ensemble (and --member) or --model"),
        (["--objective", "glrt", "--ensemble", "TINY"], "--member is missing: the ensemble has resnet, vit"),
        (["--objective", "glrt", "--ensemble", "TINY", "--member", "x"], "has no member 'x'; it has resnet, vit"),
        (["--objective", "glrt", "--ensemble", "TINY", "--init", "x"], "--options and --init belong to --model"),
        (["--objective", "glrt", "--model", "test_resnet", "--per-class", "40"], "leave room for two classes"),
        (["--objective", "glrt", "--model", "test_resnet", "--train-blocks", "9"], "the network has 5 blocks"),
    ],
)
def test_what_cannot_be_trained_is_said(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, capsys: Any, arguments: list[str], words: str
) -> None:
    given = [str(tiny) if argument == "TINY" else argument for argument in arguments]
    assert main(["train", str(pictures(2)), "--out", str(tmp_path / "out"), *given]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_other_backends_and_objectives_are_refused(tiny: Path, pictures: Callable[..., Path], tmp_path: Path) -> None:
    ensemble = load_ensemble(tiny)
    foreign = replace(ensemble, members=(replace(ensemble.members[0], backend="open_clip"),))
    with pytest.raises(EnsembleError, match="only members of backend timm can be trained"):
        StudentSpec.of_member(foreign, "resnet", "n")
    with pytest.raises(ConfigurationError, match="there is no objective 'guess'"):
        finetune_member(open_sources([str(pictures(2))]), STUDENT, replace(RECIPE, objective="guess"), tmp_path)


def test_bf16_trains_too(pictures: Callable[..., Path], tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1, precision="bf16", validation=0.0, batch=8)
    trained = finetune_member(open_sources([str(pictures(2))]), STUDENT, recipe, tmp_path / "out", SETTINGS)
    assert all(np.isfinite(value.float().numpy()).all() for value in load_file(trained.weights).values())


def test_without_a_word_of_how_a_built_in_member_learns_the_labels(
    pictures: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    # Too few images to train on, which is found out when all else has been decided.
    assert main(["train", str(pictures(2)), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "training resnetv2 of compact with the objective glrt; --ensemble chooses another" in said
    assert "no class has the four labelled images" in said


def test_there_is_a_loss_for_every_objective() -> None:
    assert tuple(OBJECTIVES) == OBJECTIVE_NAMES
