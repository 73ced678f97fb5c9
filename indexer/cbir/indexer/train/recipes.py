"""The hyperparameters of each kind of training run, apart from what runs them, which needs torch."""

from __future__ import annotations

from dataclasses import dataclass

from cbir.core.errors import ConfigurationError
from cbir.indexer.train.recipe import Recipe, Sizes

__all__ = ["OBJECTIVE_NAMES", "DistillRecipe", "FinetuneRecipe", "parse_blocks"]

#: What a run with labels may minimise.
OBJECTIVE_NAMES = ("cross-entropy", "glrt", "triplet", "multi-similarity")


@dataclass(frozen=True)
class DistillRecipe(Recipe):
    """The hyperparameters of a distillation run.

    Attributes:
        components: Number of principal components of each teacher that the student regresses.
        whiten: Each component is divided by its standard deviation to this power: 0 not at all, 1 fully whitened.
        dense: Weight of the cosine distance at every location; that of the pooled output has weight 1.
        kl: Weight of the Kullback-Leibler divergence from the logits of the teachers' classifiers.
        temperature: Temperature of the two softmaxes in that divergence.
        label_weight: Weight of the cross-entropy on labels; 0 ignores labels.
        whiten_head: Whether the exported embedding is the whitened feature before the head, instead of the output that
            regresses the teachers.
    """

    sizes: Sizes = ((48, 0.4), (64, 0.8), (80, 1.0))
    epochs: float = 1000.0
    optimizer: str = "muon"
    lr: float = 2e-3
    warmup: float = 0.02
    components: int = 256
    whiten: float = 0.5
    dense: float = 0.5
    kl: float = 0.1
    temperature: float = 2.0
    label_weight: float = 0.1
    whiten_head: bool = True


@dataclass(frozen=True)
class FinetuneRecipe(Recipe):
    """The hyperparameters of a fine-tuning run.

    Attributes:
        objective: One of :data:`OBJECTIVE_NAMES`.
        train_blocks: How many of the last blocks are trained: an int is a number, a float a share of all blocks.
        per_class: Images of each class in a batch; the batch holds ``batch / per_class`` classes.
    """

    objective: str = "glrt"
    train_blocks: float = 0.5
    per_class: int = 4
    lr: float = 3e-4
    muon_lr: float = 2e-3
    ema: float = 0.99
    min_area: float = 0.5
    validation: float = 0.2
    patience: int = 5

    def check(self) -> None:
        """See :meth:`Recipe.check`."""
        super().check()
        if self.objective not in OBJECTIVE_NAMES:
            raise ConfigurationError(
                f"there is no objective {self.objective!r}: known are distill, {', '.join(OBJECTIVE_NAMES)}",
                reason="BAD_RECIPE",
            )
        if not 2 <= self.per_class <= self.batch // 2:
            raise ConfigurationError(
                f"--per-class is {self.per_class} in batches of {self.batch}; it must be at least 2 and leave room for "
                "two classes",
                reason="BAD_RECIPE",
            )


def parse_blocks(text: str) -> int | float:
    """Read how many of the last blocks to train: a number (``3``), a share of all blocks (``0.5``) or ``all``.

    Returns:
        An int for a number, a float for a share.

    Raises:
        ValueError: The text is none of these.
    """
    if text == "all":
        return 1.0
    value = float(text) if "." in text else int(text)
    if value < 0 or (isinstance(value, float) and value > 1):
        raise ValueError(f"{text} is neither a number of blocks, nor a share from 0.0 to 1.0, nor 'all'")
    return value
