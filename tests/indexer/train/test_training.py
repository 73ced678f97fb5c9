"""The parts of training: views, layers, optimiser, images and their split, the loop and its checkpoint."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from images import truncated_jpeg
from torch import nn

from cbir.core.ensemble import InputFormat
from cbir.core.errors import ConfigurationError, EnsembleError, SourceError
from cbir.core.images import Crop
from cbir.indexer.sources import open_sources
from cbir.indexer.train import Recipe, TrainingProgress, parse_blocks, parse_sizes
from cbir.indexer.train.augmentation import augment, random_views, sample_map
from cbir.indexer.train.checkpoint import Checkpoint
from cbir.indexer.train.curves import draw_curves
from cbir.indexer.train.images import hold_out, read_images
from cbir.indexer.train.loop import TrainingLoop
from cbir.indexer.train.network.layers import block_parameters, classifiers, keep_frozen_norms, train_last_blocks
from cbir.indexer.train.network.student import dense_embeddings, keep_head_norms
from cbir.indexer.train.optimiser import Muon, make_optimisers, orthogonalise
from cbir.indexer.train.precision import choose_precision
from cbir.indexer.train.progress import Result
from cbir.indexer.train.run import random_batches
from cbir.indexer.train.validation import leave_one_out_map

NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("resnetv2_18", {"channels": [8, 16, 24, 32], "stem_chs": 8}),
    ("convnext_atto", {"dims": [8, 16, 24, 32], "depths": [1, 2, 2, 1], "head_norm_first": True}),
    ("vit_tiny_patch16_224", {"depth": 3, "embed_dim": 48, "img_size": 32}),
    ("mobilenetv2_100", {}),
    ("levit_128s", {"img_size": 64}),
]
FORM = InputFormat(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
CPU = choose_precision("cpu", "float32")


# Views


def test_a_view_of_the_whole_image_is_the_image() -> None:
    image = torch.rand(1, 3, 16, 16)
    whole, flipped = torch.eye(2, 3)[None], torch.diag_embed(torch.tensor([[-1.0, 1.0]]))
    generator = torch.Generator()
    torch.testing.assert_close(augment(image, whole, 16, 0.0, generator), image)
    flipped = torch.cat([flipped, torch.zeros(1, 2, 1)], dim=2)
    torch.testing.assert_close(augment(image, flipped, 16, 0.0, generator), image.flip(3))


def test_a_map_is_cut_as_its_image_is() -> None:
    """A map that holds the image itself must show, location by location, what the view of the image shows."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    image = torch.stack([x, y, x * 0])[None].expand(20, -1, -1, -1)
    views = random_views(20, 0.3, generator)
    seen = augment(image, views, 8, 0.0, generator).flatten(2).transpose(1, 2)
    mapped = sample_map(torch.nn.functional.adaptive_avg_pool2d(image, 16), views, 8)
    # Away from the border, where images are mirrored and maps continued.
    inner = (seen[..., :2] > 0.1).all(-1) & (seen[..., :2] < 0.9).all(-1)
    assert inner.float().mean() > 0.5
    assert (seen - mapped)[inner].abs().max() < 0.03


def test_views_lie_inside_and_differ() -> None:
    views = random_views(500, 0.5, torch.Generator().manual_seed(0))
    reach = views[:, [0, 1], [0, 1]].abs() + views[:, :, 2].abs()
    assert reach.max() <= 1 + 1e-6
    area = views[:, 0, 0].abs() * views[:, 1, 1]
    assert area.min() > 0.4
    assert 0.4 < (views[:, 0, 0] < 0).float().mean() < 0.6


# Layers


@pytest.mark.parametrize(("model", "options"), NETWORKS)
def test_only_the_last_blocks_are_trained(model: str, options: dict[str, Any]) -> None:
    network = timm.create_model(model, num_classes=5, **options)
    blocks = block_parameters(network)
    trained = train_last_blocks(network, 1)
    assert (trained.blocks, trained.of_blocks) == (1, len(blocks))
    on = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert on >= set(blocks[-1])
    assert not on & {name for block in blocks[:-1] for name in block}
    assert trained.parameters == sum(dict(network.named_parameters())[name].numel() for name in on)
    assert all(p.requires_grad for head in classifiers(network) for p in head.parameters())
    network.train()
    keep_frozen_norms(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    side = options.get("img_size", 64)
    network(torch.randn(4, 3, side, side)).sum().backward()
    optimiser.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    # Neither weights nor the statistics of batch norms move in frozen blocks.
    frozen = {name.rpartition(".")[0] for block in blocks[:-1] for name in block}
    assert changed & on
    assert not {name for name in changed if name.rpartition(".")[0] in frozen}


def test_a_share_of_the_blocks() -> None:
    network = timm.create_model("test_resnet", num_classes=0)
    assert str(train_last_blocks(network, 0.5)).startswith("training the last 3 of 5 blocks: 0.3")
    assert train_last_blocks(network, 1.0).parameters == sum(p.numel() for p in network.parameters())
    with pytest.raises(ConfigurationError, match="the network has 5 blocks"):
        train_last_blocks(network, 6)
    assert [parse_blocks(text) for text in ("all", "3", "0.25")] == [1.0, 3, 0.25]
    for text in ("1.5", "-1", "some"):
        with pytest.raises(ValueError):
            parse_blocks(text)


@pytest.mark.parametrize(("model", "options"), NETWORKS[:2])
def test_the_mean_over_locations_is_the_output(model: str, options: dict[str, Any]) -> None:
    network = timm.create_model(model, num_classes=5, **options).eval()
    images = torch.randn(2, 3, 64, 64)
    dense = dense_embeddings(network, network.forward_features(images))
    assert dense.shape == (2, 4, 5)
    torch.testing.assert_close(dense.mean(dim=1), network(images), atol=1e-5, rtol=1e-4)


def test_tokens_are_locations_too() -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=5, **NETWORKS[2][1]).eval()
    dense = dense_embeddings(network, network.forward_features(torch.randn(2, 3, 32, 32)))
    assert dense.shape == (2, 4, 5)
    assert not torch.allclose(dense[:, 0], dense[:, 1])


def test_norms_behind_the_pooling_do_not_mix_statistics() -> None:
    network = timm.create_model("levit_128s", num_classes=5, img_size=64).train()
    keep_head_norms(network, 64)
    assert not network.head.bn.training
    assert network.training
    assert network.stem.conv1.bn.training


# Optimiser


def test_orthogonalise_pushes_singular_values_to_one() -> None:
    for shape in ((20, 60), (60, 20)):
        matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalise(matrix))
        assert values.min() > 0.6
        assert values.max() < 1.25


def test_muon_gets_hidden_weights_only() -> None:
    network = timm.create_model("convnext_atto", num_classes=5, **NETWORKS[1][1])
    adamw, muon = make_optimisers(network, nn.Linear(5, 3), Recipe(optimizer="muon"))
    assert isinstance(muon, Muon)
    names = {id(p): name for name, p in network.named_parameters()}
    hidden = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert "stages.1.blocks.0.mlp.fc1.weight" in hidden
    assert "stages.1.downsample.1.weight" in hidden
    assert not {name for name in hidden if name.startswith(("stem", "head")) or "conv_dw" in name}
    count = sum(p.numel() for o in (adamw, muon) for group in o.param_groups for p in group["params"])
    assert count == sum(p.numel() for p in network.parameters()) + 18
    assert len(make_optimisers(network, nn.Identity(), Recipe(optimizer="adamw"))) == 1


def test_muon_moves_a_matrix_by_its_rate() -> None:
    weight = nn.Parameter(torch.zeros(8, 4, 1, 2))
    optimiser = Muon([weight], lr=0.1, weight_decay=0.0)
    weight.grad = torch.randn(8, 4, 1, 2)
    optimiser.step()
    assert torch.linalg.svdvals(weight.detach().reshape(8, 8)).max() == pytest.approx(0.1, rel=0.3)
    assert (weight.detach() * weight.grad).sum() < 0


def test_the_rate_is_a_trapezium() -> None:
    recipe = Recipe(warmup=0.1, decay=0.5, sizes=parse_sizes("48:0.4,64:0.8,80:1"))
    assert [recipe.rate_at(f) for f in (0.0, 0.05, 0.1, 0.5, 0.75, 1.0)] == pytest.approx([0, 0.5, 1, 1, 0.5, 0])
    assert [recipe.size_at(f) for f in (0, 0.39, 0.4, 0.8, 1.0)] == [48, 48, 64, 80, 80]
    assert recipe.size == 80
    for text in ("48:0.5", "48:0.9,64:0.5,80:1", "4", "x"):
        with pytest.raises(ValueError):
            parse_sizes(text)


def test_precision() -> None:
    assert choose_precision("cpu", "float32").half is None
    assert choose_precision("cpu", "bf16").half == torch.bfloat16
    assert choose_precision("cpu", "auto").half in (None, torch.bfloat16)
    with pytest.raises(ConfigurationError, match="fp16 on a GPU"):
        choose_precision("cpu", "fp16")


# Images


def test_images_are_read_once_and_broken_ones_left_out(pictures: Callable[..., Path], tmp_path: Path) -> None:
    folder = pictures(3)
    (folder / "class1" / "broken.jpg").write_bytes(truncated_jpeg()[:300])
    images = read_images(open_sources([str(folder)]), tmp_path, 16)
    assert (len(images), images.skipped, images.pixels.shape) == (12, 1, (12, 16, 16, 3))
    assert images.classes == ("class0", "class1", "class2", "class3")
    assert images.codes.tolist() == sorted([0, 1, 2, 3] * 3)
    kept = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("images-*")}
    again = read_images(open_sources([str(folder)]), tmp_path, 16)
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("images-*")} == kept
    np.testing.assert_array_equal(again.pixels, images.pixels)
    assert again.content == images.content
    assert read_images(open_sources([str(folder)]), tmp_path, 16, crop=Crop.BORDER).pixels.shape == (12, 16, 16, 3)


def test_labels_that_cannot_teach_are_refused(pictures: Callable[..., Path], tmp_path: Path) -> None:
    folder = pictures(3)
    one = open_sources([str(folder / "class0")])
    with pytest.raises(SourceError, match="tells classes apart and needs two"):
        read_images(one, tmp_path, 16, labelled=True)
    lonely = folder / "lonely"
    lonely.mkdir()
    (folder / "class0" / "000.png").rename(lonely / "a.png")
    with pytest.raises(SourceError, match="the class 'lonely' has one image only"):
        read_images(open_sources([str(folder)]), tmp_path, 16, labelled=True)
    manifest = tmp_path / "list.csv"
    rows = [f"{folder}/class{k}/{i:03d}.png,{'' if i == 1 else k}" for k in (1, 2) for i in range(3)]
    manifest.write_text("path,label\n" + "\n".join(rows) + "\n")
    images = read_images(open_sources([str(manifest)]), tmp_path, 16, labelled=True)
    assert (len(images), images.unlabelled, images.classes) == (4, 2, ("1", "2"))


def test_hold_out_keeps_the_shares_of_the_classes() -> None:
    codes = np.array([0] * 20 + [1] * 10 + [2] * 4 + [3] * 3 + [-1] * 5)
    training, held = hold_out(codes, 0.3, seed=1)
    assert np.bincount(codes[held]).tolist() == [6, 3, 2]
    assert sorted([*training, *held]) == list(range(42))
    assert hold_out(codes, 0.3, seed=1)[1].tolist() == held.tolist() != hold_out(codes, 0.3, seed=2)[1].tolist()
    assert len(hold_out(codes, 0.0, seed=1)[1]) == 0
    assert len(hold_out(codes, 0.3, seed=1, most=8)[1]) <= 8
    with pytest.raises(SourceError, match="--validation 0"):
        hold_out(np.array([0, 0, 0, 1, 1, 1]), 0.3, seed=0)


def test_leave_one_out_by_hand() -> None:
    # Angles 0 and 10 degrees of one class with 5 of another between: both find the stranger first.
    angles = np.radians([0, 10, 5, 90])
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # Image 2 has two strangers before its partner (1/3), the others have one (1/2 each).
    assert leave_one_out_map(unit, np.array([0, 0, 1, 1])) == pytest.approx((0.5 + 0.5 + 1 / 3 + 0.5) / 4)


# Loop


class Brightness(nn.Module):
    """Learns to tell how bright an image is; has a buffer and a parameter of its own, as objectives may."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 1)
        self.register_buffer("calls", torch.tensor(0))

    def forward(
        self, network: nn.Module, images: torch.Tensor, rows: np.ndarray, views: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.calls += 1
        error = (self.head(network(images).float())[:, 0] - images.mean(dim=(1, 2, 3))).square().mean()
        return error, {"half": error / 2}


def run_loop(
    folder: Path,
    recipe: Recipe,
    identity: str = "a",
    on_progress: Callable[[TrainingProgress], None] | None = None,
    validate: Callable[[nn.Module], float] | None = None,
) -> Result:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=8)
    train_last_blocks(network, 2)
    pixels = np.random.default_rng(0).integers(0, 255, (24, 1, 1, 3)).repeat(36, 1).repeat(36, 2).astype(np.uint8)
    batches = random_batches(np.arange(24), recipe)
    return TrainingLoop(
        network, Brightness(), pixels, batches, recipe, FORM, Checkpoint(folder / "c", identity, 0.0), CPU,
        validate=validate, on_progress=on_progress,
    ).run()  # fmt: skip


LOOP = Recipe(sizes=((24, 0.5), (32, 1.0)), epochs=4, batch=8, optimizer="muon", ema=0.9)


@pytest.mark.parametrize(
    ("end", "next_step"),
    [(KeyboardInterrupt, 6), (SystemExit, 5)],  # Ctrl-C saves the step it came in; a kill costs what was not saved
)
def test_a_stopped_run_ends_as_one_that_was_not(tmp_path: Path, end: type[BaseException], next_step: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = run_loop(tmp_path / "a", LOOP)
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]

    def stop(progress: TrainingProgress) -> None:
        if progress.step == 5:  # in the middle of an epoch
            if end is SystemExit:
                raise end
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(end):
        run_loop(tmp_path / "b", LOOP, on_progress=stop)
    steps: list[int] = []
    resumed = run_loop(tmp_path / "b", LOOP, on_progress=lambda p: steps.append(p.step))
    assert steps == list(range(next_step, 13))
    assert [point["epoch"] for point in resumed.history] == [point["epoch"] for point in whole.history]
    for name, value in whole.state.items():
        torch.testing.assert_close(resumed.state[name], value)
    # A finished run is known, another one is not continued.
    steps.clear()
    run_loop(tmp_path / "b", LOOP, on_progress=lambda p: steps.append(p.step))
    assert steps == []
    with pytest.raises(EnsembleError, match="another recipe, network, teacher or other images"):
        run_loop(tmp_path / "b", LOOP, identity="b")
    (tmp_path / "b" / "c").write_bytes(b"no checkpoint")
    with pytest.raises(EnsembleError, match="no readable checkpoint"):
        run_loop(tmp_path / "b", LOOP)


def test_the_best_epoch_is_kept_and_patience_ends_a_run(tmp_path: Path) -> None:
    figures = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1])
    seen: list[dict[str, torch.Tensor]] = []

    def validate(network: nn.Module) -> float:
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        return next(figures)

    result = run_loop(tmp_path, replace(LOOP, epochs=100, patience=2), validate=validate)
    assert (result.stopped, len(seen)) == ("patience", 4)
    assert result.best is not None
    assert (result.best["map@10"], result.best["epoch"]) == (0.5, 1)
    for name, value in result.state.items():
        torch.testing.assert_close(value, seen[1][name].contiguous())
    draw_curves(result.history, result.best, "run", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_time_ends_a_run(tmp_path: Path) -> None:
    result = run_loop(tmp_path, replace(LOOP, epochs=1e6, minutes=0.01))
    assert result.stopped == "schedule"
    assert 0.5 < result.seconds < 10


@pytest.mark.parametrize(
    ("change", "words"),
    [({"minutes": 0}, "--minutes is 0"), ({"ema": 1.0}, "--ema is 1.0"), ({"validation": 1.0}, "from 0 to below 1")],
)
def test_recipes_that_train_nothing_are_refused(change: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        replace(Recipe(), **change).check()
