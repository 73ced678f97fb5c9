"""Train a compact backbone by distillation: it regresses the features of larger, frozen teachers.

The loss is the cosine distance between the student's output and the teacher's partially whitened feature map, at every
location (the map is cut by the same random view as the student's image) and between their means.  Where a teacher has a
classifier, its logits are matched too; where images have labels, a cross-entropy is added.  Methods: Hinton et al.,
"Distilling the Knowledge in a Neural Network", arXiv 1503.02531 (logits); Romero et al., "FitNets", arXiv 1412.6550
(feature maps); Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", arXiv 2106.05237
(teacher and student see the same view).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cbir.core.ensemble import EnsembleSpec, choose_runtime, member_fingerprint
from cbir.indexer.build import ImageSources, Progress, RunSettings
from cbir.indexer.train.augmentation import sample_map
from cbir.indexer.train.export import TrainedMember, ensemble_text
from cbir.indexer.train.images import hold_out, read_images
from cbir.indexer.train.network.student import StudentSpec, build_student, dense_embeddings, probe
from cbir.indexer.train.precision import choose_precision
from cbir.indexer.train.progress import TrainingProgress
from cbir.indexer.train.recipes import DistillRecipe
from cbir.indexer.train.run import random_batches, train_and_export
from cbir.indexer.train.teachers import Teacher, learn_teachers, whitening

__all__ = ["DistillObjective", "distill_member"]


class DistillObjective(nn.Module):
    """Cosine distance to the teachers' features, divergence from their logits, and cross-entropy on labels.

    Args:
        teachers: The student's output is the concatenation of the components of each.
        codes: (N,) class numbers; negative without a label.
        width: Length of the student's features before its head; labels are classified from these.
        side: Number of locations a side of the student's feature map; 0 if it has none, then only pooled outputs are
            compared.
    """

    def __init__(
        self, teachers: Sequence[Teacher], codes: NDArray[np.int64], width: int, side: int, recipe: DistillRecipe
    ) -> None:
        super().__init__()
        self.teachers, self.recipe, self.side = tuple(teachers), recipe, side
        self.widths = [teacher.width for teacher in teachers]
        self.codes = torch.from_numpy(codes)
        classes = int(codes.max(initial=-1)) + 1
        self.classify = nn.Linear(width, classes) if classes >= 2 and recipe.label_weight > 0 else None
        for i, teacher in enumerate(teachers):
            whiten = torch.from_numpy(whitening(teacher.deviations, recipe.whiten))
            self.register_buffer(f"whiten{i}", whiten, persistent=False)
            if teacher.classifier is not None and recipe.kl > 0:
                weight, bias = (torch.from_numpy(part) for part in teacher.classifier)
                self.register_buffer(f"weight{i}", weight / whiten, persistent=False)
                self.register_buffer(f"bias{i}", bias, persistent=False)

    def forward(
        self, network: nn.Module, images: Tensor, rows: NDArray[np.int64], views: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`cbir.indexer.train.loop.Objective`."""
        features = network.forward_features(images)  # type: ignore[operator]
        pooled = torch.split(network.forward_head(features).flatten(1).float(), self.widths, 1)  # type: ignore[operator]
        local: Sequence[Tensor] = ()
        if self.compares_locations:
            local = torch.split(dense_embeddings(network, features).float(), self.widths, 2)
        found: dict[str, list[Tensor]] = {"pooled": [], "dense": [], "kl": []}
        for i, teacher in enumerate(self.teachers):
            side = math.isqrt(local[i].shape[1]) if local else 0
            want = self._targets(i, rows, views, side, images.device)
            mean = want.mean(dim=1)
            found["pooled"].append(F.cosine_similarity(pooled[i], mean, dim=-1).mean())
            if local and teacher.dense:
                found["dense"].append(F.cosine_similarity(local[i], want, dim=-1).mean())
            if (weight := getattr(self, f"weight{i}", None)) is not None:
                bias = getattr(self, f"bias{i}")
                found["kl"].append(self._divergence(pooled[i] @ weight.T + bias, mean @ weight.T + bias))
        parts = {name: torch.stack(values).mean() for name, values in found.items() if values}
        loss = 1 - parts["pooled"]
        if "dense" in parts:
            loss = loss + self.recipe.dense * (1 - parts["dense"])
        if "kl" in parts:
            loss = loss + self.recipe.kl * parts["kl"]
        truth = self.codes[torch.from_numpy(rows)].to(images.device)
        if self.classify is not None and bool((truth >= 0).any()):
            before = network.forward_head(features, pre_logits=True).flatten(1).float()  # type: ignore[operator]
            parts["labels"] = F.cross_entropy(self.classify(before), truth, ignore_index=-1, label_smoothing=0.1)
            loss = loss + self.recipe.label_weight * parts["labels"]
        return loss, parts

    @property
    def compares_locations(self) -> bool:
        """Whether outputs are compared at every location: the student and a teacher have feature maps."""
        return self.side > 0 and self.recipe.dense > 0 and any(teacher.dense for teacher in self.teachers)

    def _targets(self, i: int, rows: NDArray[np.int64], views: Tensor, side: int, device: torch.device) -> Tensor:
        """Features (B, locations, d) of teacher i in the views; a single location where it has no map."""
        teacher = self.teachers[i]
        features = torch.from_numpy(np.asarray(teacher.features[rows])).to(device).float()
        if not teacher.dense:
            return features[:, None, :] * self.get_buffer(f"whiten{i}")
        seen: Tensor = sample_map(features.permute(0, 3, 1, 2), views, side or features.shape[1])
        return seen * self.get_buffer(f"whiten{i}")

    def _divergence(self, ours: Tensor, theirs: Tensor) -> Tensor:
        soft = self.recipe.temperature
        return F.kl_div(F.log_softmax(ours / soft, 1), F.softmax(theirs / soft, 1), reduction="batchmean")


def distill_member(
    sources: ImageSources,
    teachers: EnsembleSpec,
    student: StudentSpec,
    recipe: DistillRecipe,
    out: Path,
    settings: RunSettings | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_training: Callable[[TrainingProgress], None] | None = None,
) -> TrainedMember:
    """Distil teachers into a student and write it as a member.

    A run that was stopped goes on where it was: the images, the teachers' features and a checkpoint are kept in
    ``out``.

    Raises:
        SourceError: No image can be used.
        EnsembleError: A teacher or the student cannot be built, or the checkpoint belongs to another run.
        KeyboardInterrupt: The user interrupted; the checkpoint was saved.
    """
    recipe.check()
    settings = settings or RunSettings()
    device = "cuda" if choose_runtime(settings.device, "torch") == "torch-cuda" else "cpu"
    precision = choose_precision(device, recipe.precision)
    # Built once before the teachers run (which may take hours), so that mistakes show at once.
    network, form = build_student(student, recipe.components * len(teachers.members))
    sides = tuple(size for size, _ in recipe.sizes)
    probe(network, sides)
    form = replace(form, size=recipe.size)
    ensemble_text(student, form, 1)
    out.mkdir(parents=True, exist_ok=True)
    # Whole images, uncropped: the teacher's map and the student's image must show the same.
    images = read_images(sources, out, student.image_size or max(sides), on_progress=on_progress)
    training, held_out = hold_out(images.codes, recipe.validation, recipe.seed)
    known = learn_teachers(teachers, images, sources, out, recipe.components, settings, on_progress)
    if (width := sum(teacher.width for teacher in known)) != recipe.components * len(known):
        network, _ = build_student(student, width)
    _, side = probe(network, sides)
    with torch.no_grad():
        blank = torch.zeros(1, 3, recipe.size, recipe.size)
        features = network.forward_features(blank)  # type: ignore[operator]
        before = network.forward_head(features, pre_logits=True).flatten(1).shape[1]  # type: ignore[operator]
    torch.manual_seed(recipe.seed)
    objective = DistillObjective(known, images.codes, before, side, recipe)
    prints = {member.name: member_fingerprint(member, teachers.crop) for member in teachers.members}
    return train_and_export(
        network, objective, student, form, images, held_out, random_batches(training, recipe), recipe, out, precision,
        {"objective": "distill", "teachers": prints}, on_training,
    )  # fmt: skip
