"""Distillation: targets are what they should be, the student learns, its files index as they are, runs go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from cbir.core.ensemble import EnsembleSpec, InputSpec, MemberSpec, load_embedder, load_ensemble
from cbir.core.errors import ConfigurationError, EnsembleError
from cbir.core.images import Crop
from cbir.indexer.build import RunSettings, build
from cbir.indexer.sources import open_sources
from cbir.indexer.train import DistillRecipe, StudentSpec, TrainingProgress, distill_member
from cbir.indexer.train.augmentation import augment, random_views
from cbir.indexer.train.distill import DistillObjective
from cbir.indexer.train.images import read_images
from cbir.indexer.train.teachers import Teacher, learn_teachers, principal_components, whitening

SETTINGS = RunSettings(device="cpu", runtime="torch")
RECIPE = DistillRecipe(sizes=((32, 0.5), (48, 1.0)), epochs=40, minutes=10, batch=20, components=16)
STUDENT = StudentSpec("small", "test_resnet")


@pytest.fixture
def teacher(tmp_path: Path) -> MemberSpec:
    """A network with a map of 3 x 3 and a classifier of its own in its weights file."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=5)
    with torch.no_grad():
        network.get_classifier().bias.normal_()
    save_file(network.state_dict(), tmp_path / "teacher.safetensors")
    form = InputSpec(96, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    return MemberSpec("big", "timm", "test_resnet", str(tmp_path / "teacher.safetensors"), input=form)


def test_principal_components_and_whitening() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(2000, 3)) * [1, 9, 4] + [5, 0, 0]).astype(np.float32)
    mean, basis, deviations = principal_components(x, 2)
    np.testing.assert_allclose(mean, x.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(deviations, ((x - mean) @ basis).std(axis=0), rtol=1e-4)
    assert np.abs(basis[[1, 2], [0, 1]]).min() > 0.99
    np.testing.assert_allclose(whitening(deviations, 0.5), 1 / np.sqrt(deviations))
    # Ten images in sixteen dimensions vary in nine of them.
    assert principal_components(rng.normal(size=(10, 16)).astype(np.float32), 16)[1].shape == (16, 9)


def test_a_teachers_map_and_its_classifier(pictures: Callable[..., Path], tmp_path: Path, teacher: MemberSpec) -> None:
    sources = open_sources([str(pictures(5))])
    images = read_images(sources, tmp_path, 96)
    teachers = EnsembleSpec("t", (teacher,), Crop.NONE)
    (known,) = learn_teachers(teachers, images, sources, tmp_path, 64, SETTINGS)
    assert known.dense
    assert known.features.shape == (20, 3, 3, 19)
    # The mean over the locations is the pooled embedding, centred and projected, so the logits are the teacher's own.
    network = timm.create_model("test_resnet", num_classes=5).eval()
    network.load_state_dict(load_file(teacher.weights))
    with torch.no_grad():
        logits = network(torch.from_numpy(np.array(images.pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1).numpy()
    assert known.classifier is not None
    weight, bias = known.classifier
    np.testing.assert_allclose(known.features.mean(axis=(1, 2)) @ weight.T + bias, logits, atol=0.02)
    # It is not embedded twice, and goes on where it was stopped.
    file = next(tmp_path.glob("teacher-big-*.npy"))
    whole = np.load(file)
    broken = np.load(file, mmap_mode="r+")
    broken[12:] = 0
    broken.flush()
    file.with_suffix(".json").write_text(json.dumps({"done": 12}))
    (again,) = learn_teachers(teachers, images, sources, tmp_path, 64, SETTINGS)
    np.testing.assert_allclose(again.features, whole, atol=1e-3)


def test_a_student_that_sees_what_the_teacher_sees_has_no_loss() -> None:
    """The network gives the location's own colour, and so does the teacher: both cosines are 1 in any view."""

    class Colours(torch.nn.Module):
        num_features = 3

        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(x, 4)

        def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
            return x.mean(dim=(2, 3))

    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(6, 3, 3, 3), size=64, mode="bilinear")
    maps = torch.nn.functional.adaptive_avg_pool2d(images, 16).permute(0, 2, 3, 1).half().numpy()
    recipe = DistillRecipe(whiten=0.0)
    exact = Teacher("t", maps, np.ones(3, np.float32))
    objective = DistillObjective([exact], np.full(6, -1), 3, 4, recipe)
    generator = torch.Generator().manual_seed(0)
    views = random_views(6, 0.8, generator)
    seen = augment(images, views, 32, 0.0, generator)
    loss, parts = objective(Colours(), seen, np.arange(6), views)
    assert parts["pooled"] > 0.999
    assert parts["dense"] > 0.995
    assert loss.item() == pytest.approx(1.5 - parts["pooled"].item() - 0.5 * parts["dense"].item())
    wrong, parts = objective(Colours(), seen, np.roll(np.arange(6), 1), views)
    assert wrong > 10 * loss


def test_labels_and_teachers_without_a_map_count_too() -> None:
    network = timm.create_model("test_resnet", num_classes=4)
    views = random_views(3, 0.8, torch.Generator().manual_seed(0))
    pooled = Teacher("p", np.ones((3, 4), np.float16), np.ones(4, np.float32))
    objective = DistillObjective([pooled], np.array([0, 1, -1]), network.num_features, 2, DistillRecipe())
    loss, parts = objective(network, torch.randn(3, 3, 64, 64), np.arange(3), views)
    assert set(parts) == {"pooled", "labels"}
    loss.backward()
    assert objective.classify is not None
    assert objective.classify.weight.grad is not None
    unlabelled = DistillObjective([pooled], np.full(3, -1), network.num_features, 2, DistillRecipe())
    assert unlabelled.classify is None


def test_a_student_learns_and_can_be_indexed_with(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, teacher: MemberSpec
) -> None:
    sources, out = open_sources([str(pictures(10))]), tmp_path / "out"
    # Two teachers, one with a map and a classifier, one with a single location.
    teachers = EnsembleSpec("both", (teacher, load_ensemble(tiny).members[0]), Crop.NONE)
    reports: list[TrainingProgress] = []
    trained = distill_member(sources, teachers, STUDENT, RECIPE, out, SETTINGS, on_training=reports.append)
    assert (trained.images, trained.classes) == (40, 4)
    first, last = reports[0].losses, reports[-1].losses
    assert set(last) == {"loss", "pooled", "dense", "kl", "labels"}
    assert last["pooled"] > first["pooled"] + 0.1
    assert last["dense"] > first["dense"] + 0.05
    # The head is part of what is shipped: its output, the whitened features, is the embedding.
    member = load_ensemble(trained.ensemble).members[0]
    assert member.options["num_classes"] == load_embedder(member, "cpu", "torch").dim == 96
    report = build(sources, tmp_path / "index", load_ensemble(trained.ensemble), SETTINGS)
    assert report.images == 40
    assert trained.weights.stat().st_mode & 0o444 == trained.ensemble.stat().st_mode & 0o444
    history = json.loads((out / "small.json").read_text())["history"]
    assert history[-1]["epoch"] == 40
    # The finished run is known; another one is not continued from its checkpoint.
    again = distill_member(sources, teachers, STUDENT, RECIPE, out, SETTINGS, on_training=reports.append)
    assert again == trained
    assert len(reports) == 80
    with pytest.raises(EnsembleError, match="another recipe, network, teacher or other images"):
        distill_member(sources, teachers, STUDENT, replace(RECIPE, lr=1e-4), out, SETTINGS)
    # Its weights, head and all, are a place to start from.
    onwards = replace(STUDENT, name="onwards", weights=str(trained.weights))
    short = replace(RECIPE, epochs=1, warmup=1.0, lr=1e-6, muon_lr=1e-6)
    distill_member(sources, teachers, onwards, short, out, SETTINGS, on_training=reports.append)
    assert reports[-1].losses["pooled"] > first["pooled"] + 0.05


@pytest.mark.parametrize(
    ("student", "recipe", "words"),
    [
        (replace(STUDENT, name="a/b"), RECIPE, "may not be called"),
        (replace(STUDENT, model="resnet_of_dreams"), RECIPE, "timm has no model"),
        (replace(STUDENT, options={"window_size": 7}), RECIPE, "timm cannot build"),
        (replace(STUDENT, options={"pretrained": True}), RECIPE, "which backend timm is not given"),
        (
            StudentSpec("v", "vit_tiny_patch16_224", {"depth": 1, "embed_dim": 48}),
            RECIPE,
            "takes no input of 32 pixels",
        ),
        (STUDENT, replace(RECIPE, minutes=0), "must be positive"),
    ],
)
def test_mistakes_are_refused_before_the_teachers_run(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, student: StudentSpec, recipe: DistillRecipe, words: str
) -> None:
    with pytest.raises((EnsembleError, ConfigurationError), match=words):
        distill_member(open_sources([str(pictures(1))]), load_ensemble(tiny), student, recipe, tmp_path / "o", SETTINGS)
    assert not (tmp_path / "o").exists()
