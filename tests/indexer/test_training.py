"""Distillation: the student learns, its files index as they are, a checkpoint goes on only with the same run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cbir.core.ensemble import load_ensemble
from cbir.core.errors import EnsembleError
from cbir.indexer.distill import DistillRecipe, TrainingProgress
from cbir.indexer.embedding import RunSettings
from cbir.indexer.pipeline import build
from cbir.indexer.sources import open_sources
from cbir.indexer.training import StudentSpec, train_member

SETTINGS = RunSettings(device="cpu", runtime="torch")
RECIPE = DistillRecipe(size=32, epochs=50, minutes=10, batch=20)
STUDENT = StudentSpec("small", "test_resnet")


def test_a_student_learns_and_can_be_indexed_with(pictures: Callable[..., Path], tmp_path: Path, tiny: Path) -> None:
    sources, teacher, out = open_sources([str(pictures(10))]), load_ensemble(tiny), tmp_path / "out"
    reports: list[TrainingProgress] = []
    trained = train_member(sources, teacher, STUDENT, RECIPE, out, SETTINGS, on_training=reports.append)
    assert (trained.images, trained.classes) == (40, 4)
    assert reports[-1].cosine > reports[0].cosine + 0.05
    report = build(sources, tmp_path / "index", load_ensemble(trained.ensemble), SETTINGS)
    assert report.images == 40
    # The finished run is known; another one is not continued from its checkpoint.
    again = train_member(sources, teacher, STUDENT, RECIPE, out, SETTINGS)
    assert again == trained
    with pytest.raises(EnsembleError, match="another recipe, network, teacher or other images"):
        train_member(sources, teacher, STUDENT, replace(RECIPE, lr=1e-4), out, SETTINGS)


@pytest.mark.parametrize(
    ("student", "recipe", "words"),
    [
        (replace(STUDENT, name="a/b"), RECIPE, "may not be called"),
        (replace(STUDENT, model="resnet_of_dreams"), RECIPE, "timm cannot build"),
        (STUDENT, replace(RECIPE, minutes=0), "must be positive"),
    ],
)
def test_mistakes_are_refused_before_the_teachers_run(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, student: StudentSpec, recipe: DistillRecipe, words: str
) -> None:
    with pytest.raises(EnsembleError, match=words):
        train_member(open_sources([str(pictures(1))]), load_ensemble(tiny), student, recipe, tmp_path / "o", SETTINGS)
    assert not (tmp_path / "o" / "cache").exists()
