"""Fine-tune a member on labelled images: its last blocks learn to place images of one class close together.

The objectives, all on class-balanced batches (K images of each of P classes):

- ``glrt``: the likelihood-ratio statistic as a loss (see :mod:`cbir.indexer.train.glrt_loss`);
- ``cross-entropy``: a linear classifier on the embedding, dropped afterwards;
- ``triplet``: Schroff et al., "FaceNet", arXiv 1503.03832, with semi-hard triplets;
- ``multi-similarity``: Wang et al., "Multi-Similarity Loss with General Pair Weighting", arXiv 1904.06627.

The last two are implemented by pytorch-metric-learning.  Freezing the first layers and augmentation follow Zhang et
al., arXiv 2410.05773.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cbir.core.ensemble import choose_runtime
from cbir.indexer.build import ImageSources, Progress, RunSettings
from cbir.indexer.train.export import TrainedMember, ensemble_text
from cbir.indexer.train.glrt_loss import GlrtLoss
from cbir.indexer.train.images import TrainingImages, hold_out, read_images
from cbir.indexer.train.network.layers import TrainedBlocks, train_last_blocks
from cbir.indexer.train.network.student import StudentSpec, build_student, probe
from cbir.indexer.train.precision import choose_precision
from cbir.indexer.train.progress import TrainingProgress
from cbir.indexer.train.recipes import FinetuneRecipe
from cbir.indexer.train.run import train_and_export

__all__ = ["OBJECTIVES", "LabelObjective", "balanced_batches", "finetune_member"]


class _CrossEntropy(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(width, classes)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.classify(embeddings), labels, label_smoothing=0.1)


class _Glrt(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.loss = GlrtLoss(width)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        # Retrieval compares unit vectors.
        loss: Tensor = self.loss(F.normalize(embeddings, dim=1), labels)
        return loss


class _Mined(nn.Module):
    """A loss of pytorch-metric-learning on the pairs or triplets that a miner selects; both normalise embeddings."""

    def __init__(self, loss: Any, miner: Any) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.loss(embeddings, labels, self.miner(embeddings, labels))
        return loss


def _triplet(width: int, classes: int) -> nn.Module:
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import TripletMarginMiner

    cosine = CosineSimilarity()
    return _Mined(
        TripletMarginLoss(margin=0.2, distance=cosine),
        TripletMarginMiner(margin=0.2, distance=cosine, type_of_triplets="semihard"),
    )


def _multi_similarity(width: int, classes: int) -> nn.Module:
    from pytorch_metric_learning.losses import MultiSimilarityLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    return _Mined(MultiSimilarityLoss(alpha=2, beta=50, base=0.5), MultiSimilarityMiner(epsilon=0.1))


#: One for each of :data:`cbir.indexer.train.recipes.OBJECTIVE_NAMES`: a factory that takes D and the number of classes
#: and makes a module (embeddings (B, D), labels (B,)) -> loss.
OBJECTIVES: dict[str, Callable[[int, int], nn.Module]] = {
    "cross-entropy": _CrossEntropy,
    "glrt": _Glrt,
    "triplet": _triplet,
    "multi-similarity": _multi_similarity,
}


class LabelObjective(nn.Module):
    """One of :data:`OBJECTIVES` on the network's output."""

    def __init__(self, name: str, width: int, codes: NDArray[np.int64]) -> None:
        super().__init__()
        self.loss = OBJECTIVES[name](width, int(codes.max()) + 1)
        self.codes = torch.from_numpy(codes)

    def forward(
        self, network: nn.Module, images: Tensor, rows: NDArray[np.int64], views: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`cbir.indexer.train.loop.Objective`."""
        labels = self.codes[torch.from_numpy(rows)].to(images.device)
        loss = self.loss(network(images).flatten(1).float(), labels)
        return loss, {}


def balanced_batches(
    rows: NDArray[np.int64], codes: NDArray[np.int64], recipe: FinetuneRecipe
) -> Callable[[int], list[NDArray[np.int64]]]:
    """A function that gives the batches of an epoch, each of ``per_class`` images of as many classes as fit.

    An epoch has about as many images as there are rows.
    """
    from pytorch_metric_learning.samplers import MPerClassSampler

    classes = len(np.unique(codes[rows]))
    size = min(recipe.batch // recipe.per_class, classes) * recipe.per_class

    def batches(epoch: int) -> list[NDArray[np.int64]]:
        # The sampler draws from NumPy's global generator: seed it for this epoch, and restore it afterwards.
        before = np.random.get_state()
        np.random.seed(int(np.random.SeedSequence((recipe.seed, epoch)).generate_state(1)[0]))
        try:
            sampler = MPerClassSampler(codes[rows], recipe.per_class, size, max(size, len(rows)))
            order = rows[np.fromiter(iter(sampler), np.int64)]
        finally:
            np.random.set_state(before)
        return [order[start : start + size] for start in range(0, len(order), size)]

    return batches


def finetune_member(
    sources: ImageSources,
    student: StudentSpec,
    recipe: FinetuneRecipe,
    out: Path,
    settings: RunSettings | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_training: Callable[[TrainingProgress], None] | None = None,
    on_trained: Callable[[TrainedBlocks, TrainingImages], None] | None = None,
) -> TrainedMember:
    """Fine-tune a network on labelled images and write it as a member.

    Args:
        on_trained: Called before the first step with the blocks that are trained and the images.

    Raises:
        SourceError: There are no labels, or too few.
        EnsembleError: The network cannot be built, or the checkpoint belongs to another run.
        ConfigurationError: A value of the recipe is out of its range.
        KeyboardInterrupt: The user interrupted; the checkpoint was saved.
    """
    recipe.check()
    settings = settings or RunSettings()
    device = "cuda" if choose_runtime(settings.device, "torch") == "torch-cuda" else "cpu"
    precision = choose_precision(device, recipe.precision)
    network, form = build_student(student)
    sides = tuple(size for size, _ in recipe.sizes)
    width, _ = probe(network, sides)
    form = replace(form, size=recipe.size)
    ensemble_text(student, form, 0)
    trained = train_last_blocks(network, recipe.train_blocks)
    out.mkdir(parents=True, exist_ok=True)
    images = read_images(
        sources, out, student.image_size or max(sides), crop=student.crop, interpolation=form.interpolation,
        labelled=True, on_progress=on_progress,
    )  # fmt: skip
    training, held_out = hold_out(images.codes, recipe.validation, recipe.seed)
    if on_trained:
        on_trained(trained, images)
    torch.manual_seed(recipe.seed)
    objective = LabelObjective(recipe.objective, width, images.codes)
    batches = balanced_batches(training, images.codes, recipe)
    return train_and_export(
        network, objective, student, form, images, held_out, batches, recipe, out, precision,
        {"objective": recipe.objective}, on_training,
    )  # fmt: skip
