"""Train a compact backbone by distillation: it regresses the embeddings of larger, frozen teachers.

The student sees an augmented image and must point where the teachers point for the clean one (cosine
regression); where class labels exist a cross-entropy term is added.  Method: Hinton et al., "Distilling the
Knowledge in a Neural Network", arXiv 1503.02531, with embeddings in place of logits (Park et al., "Relational
Knowledge Distillation", arXiv 1904.05068, discusses the family); mixup: Zhang et al., arXiv 1710.09412.

Everything runs on tensors: images stay uint8 in one array, augmentation is one affine resampling a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cbir.core.errors import EnsembleError

__all__ = ["DistillRecipe", "TrainingProgress", "augment", "distill", "teacher_targets"]


@dataclass(frozen=True)
class DistillRecipe:
    """What one training run does; every value lands in the model card.

    Attributes:
        size: Input side of the student in pixels; training images are resampled to it.
        epochs: Upper bound on passes over the data.
        minutes: Wall-clock budget; the schedule ends at whichever of ``epochs`` and ``minutes`` comes first.
        label_weight: Weight of the cross-entropy term beside the cosine term; 0 ignores labels.
        ema: Decay per step of the averaged weights that are kept.
    """

    size: int = 64
    epochs: float = 10.0
    minutes: float = 60.0
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.02
    warmup: float = 0.04
    ema: float = 0.998
    label_weight: float = 0.1
    mixup: float = 0.0
    min_area: float = 0.7
    jitter: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class TrainingProgress:
    """One report from the loop: position in the schedule, running losses and speed (images a second)."""

    fraction: float
    step: int
    cosine: float
    cross_entropy: float
    images_per_second: float
    seconds_left: float


def teacher_targets(embeddings: list[NDArray[np.float32]], dim: int = 256) -> NDArray[np.float32]:
    """Turn teachers' raw embeddings into regression targets.

    Args:
        embeddings: One array (N, D_t) a teacher, the same images in the same order.
        dim: Principal components kept of each teacher.

    Returns:
        (N, sum of kept dims) float32 of unit rows; each teacher has the same share of the norm.
    """
    parts = []
    for raw in embeddings:
        x = torch.from_numpy(np.asarray(raw, dtype=np.float32))
        x = F.normalize(x, dim=1)
        x = x - x.mean(dim=0)
        covariance = (x.T @ x) / len(x)
        _, vectors = torch.linalg.eigh(covariance)
        basis = vectors[:, -min(dim, x.shape[1]) :].flip(1)
        parts.append(F.normalize(x @ basis, dim=1))
    return F.normalize(torch.cat(parts, dim=1), dim=1).numpy()


def augment(images: Tensor, size: int, recipe: DistillRecipe, generator: torch.Generator) -> Tensor:
    """Random resized crop, horizontal flip and brightness/contrast jitter, on a whole batch at once.

    Args:
        images: (B, 3, H, W) float32 in 0..1.
        size: Side of the result in pixels.

    Returns:
        (B, 3, size, size) float32, not clipped: jitter may leave 0..1 slightly, as normalisation follows.
    """
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=generator)

    side = uniform(recipe.min_area, 1.0).sqrt()
    stretch = uniform(-0.2, 0.2).exp()
    scale_x, scale_y = (side * stretch).clamp(max=1.0), (side / stretch).clamp(max=1.0)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = scale_x * flip
    theta[:, 1, 1] = scale_y
    theta[:, 0, 2] = uniform(-1, 1) * (1 - scale_x)
    theta[:, 1, 2] = uniform(-1, 1) * (1 - scale_y)
    theta = theta.to(images.device)
    grid = F.affine_grid(theta, [count, 3, size, size], align_corners=False)
    out = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    contrast = uniform(1 - recipe.jitter, 1 + recipe.jitter).to(images.device)[:, None, None, None]
    brightness = uniform(-recipe.jitter, recipe.jitter).to(images.device)[:, None, None, None] * 0.5
    channel = torch.empty(count, 3, 1, 1).uniform_(-0.06, 0.06, generator=generator).to(images.device)
    mean = out.mean(dim=(1, 2, 3), keepdim=True)
    return (out - mean) * contrast + mean + brightness + channel


def distill(
    student: nn.Module,
    images: NDArray[np.uint8],
    targets: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    recipe: DistillRecipe,
    checkpoint: Path,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: str = "cpu",
    on_progress: Callable[[TrainingProgress], None] | None = None,
    checkpoint_seconds: float = 120.0,
    identity: str = "",
) -> dict[str, Tensor]:
    """Train ``student`` (a feature extractor) and return its averaged weights.

    Args:
        student: Maps (B, 3, size, size) to (B, D); ``student.num_features`` or a probe gives D.
        images: (N, H, W, 3) uint8, all of one size (a memory map is fine).
        targets: (N, T) float32 unit rows from :func:`teacher_targets`.
        labels: (N,) class numbers or None.
        identity: What the run is made of beside the recipe; a checkpoint of another one is refused.
        checkpoint: File that is replaced every ``checkpoint_seconds``; an interrupted run goes on from it.

    Returns:
        The exponential moving average of the student's state dict (heads excluded), float32 on the CPU.

    Raises:
        ValueError: The arrays disagree in length.
        EnsembleError: The checkpoint belongs to another run.
    """
    if len(images) != len(targets) or (labels is not None and len(labels) != len(images)):
        raise ValueError(f"{len(images)} images, {len(targets)} targets: the arrays must have one row an image")
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    target_tensor = torch.from_numpy(np.asarray(targets, dtype=np.float32))
    label_tensor = torch.from_numpy(labels) if labels is not None and recipe.label_weight > 0 else None
    student = student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        student.eval()
        width = student(torch.zeros(1, 3, recipe.size, recipe.size, device=device)).shape[1]
    # A linear head keeps what the features know linearly readable, which is all that projection can use later.
    regress = nn.Linear(width, targets.shape[1]).to(device)
    classes = int(label_tensor.max()) + 1 if label_tensor is not None else 1
    classify = nn.Linear(width, classes).to(device)
    model = nn.ModuleDict({"student": student, "regress": regress, "classify": classify})
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}], lr=recipe.lr
    )
    average = {k: v.detach().clone() for k, v in student.state_dict().items()}
    step, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["recipe"] != asdict(recipe) or state["identity"] != identity:
            raise EnsembleError(
                f"{checkpoint} was written with another recipe, network, teacher or other images: remove it or name "
                "another output folder",
                reason="OTHER_CHECKPOINT",
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, step, spent = state["average"], state["step"], state["spent"]
        generator.manual_seed(recipe.seed + step)

    def save() -> None:
        partial = checkpoint.with_suffix(".partial")
        torch.save(
            {"recipe": asdict(recipe), "identity": identity, "model": model.state_dict(),
             "optimizer": optimizer.state_dict(), "average": average, "step": step, "spent": spent},
            partial,
        )  # fmt: skip
        partial.replace(checkpoint)

    total = max(1, int(recipe.epochs * len(images) / recipe.batch))
    mean_t = torch.tensor(mean, device=device).view(1, 3, 1, 1)
    std_t = torch.tensor(std, device=device).view(1, 3, 1, 1)
    started = saved = time.monotonic()
    before = spent
    running_cos = running_ce = 0.0
    order, position = torch.randperm(len(images), generator=generator), 0
    model.train()
    while True:
        fraction = max(step / total, spent / (60 * recipe.minutes))
        if fraction >= 1:
            break
        warm = min(1.0, fraction / recipe.warmup) if recipe.warmup > 0 else 1.0
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * warm * 0.5 * (1 + math.cos(math.pi * fraction))
        if position + recipe.batch > len(order):
            order, position = torch.randperm(len(images), generator=generator), 0
        rows = order[position : position + recipe.batch].sort().values
        position += recipe.batch
        batch = torch.from_numpy(images[rows.numpy()]).to(device).permute(0, 3, 1, 2).float().div_(255)
        x = augment(batch, recipe.size, recipe, generator)
        want = target_tensor[rows].to(device)
        mix = float(np.random.default_rng(recipe.seed + step).beta(recipe.mixup, recipe.mixup)) if recipe.mixup else 1.0
        if mix < 1:
            x = mix * x + (1 - mix) * x.flip(0)
            want = F.normalize(mix * want + (1 - mix) * want.flip(0), dim=1)
        x = (x - mean_t) / std_t
        feature = student(x.contiguous(memory_format=torch.channels_last))
        cosine = F.cosine_similarity(regress(feature), want, dim=1).mean()
        loss = 1 - cosine
        if label_tensor is not None:
            truth = label_tensor[rows].to(device)
            logits = classify(feature)
            cross = mix * F.cross_entropy(logits, truth, label_smoothing=0.1)
            cross = cross + (1 - mix) * F.cross_entropy(logits, truth.flip(0), label_smoothing=0.1)
            loss = loss + recipe.label_weight * cross
            running_ce = 0.98 * running_ce + 0.02 * float(cross.detach())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        # The average starts short so that the first random weights are forgotten quickly.
        keep = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in student.state_dict().items():
                if value.dtype.is_floating_point:
                    average[name].mul_(keep).add_(value.detach(), alpha=1 - keep)
                else:
                    average[name].copy_(value)
        running_cos = 0.98 * running_cos + 0.02 * float(cosine.detach()) if step > 1 else float(cosine.detach())
        spent = before + time.monotonic() - started
        if on_progress is not None and step % 50 == 0:
            done = max(step / total, spent / (60 * recipe.minutes))
            on_progress(
                TrainingProgress(done, step, running_cos, running_ce, step * recipe.batch / spent, spent / done - spent)
            )
        if time.monotonic() - saved > checkpoint_seconds:
            save()
            saved = time.monotonic()
    save()
    # Contiguous, as safetensors takes no channels_last tensor.
    return {k: (v.float() if v.dtype.is_floating_point else v).cpu().contiguous() for k, v in average.items()}
