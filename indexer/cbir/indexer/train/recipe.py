"""The hyperparameters that every training run has, whatever its objective."""

from __future__ import annotations

from dataclasses import dataclass

from cbir.core.errors import ConfigurationError

__all__ = ["Recipe", "parse_sizes"]

Sizes = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of one run; all are written to the ``.json`` beside the weights.

    Attributes:
        sizes: Progressive resizing: sides of the network's input in pixels, each with the fraction of the schedule at
            which it ends (1 for the last).  Beginning with small images saves time and costs little accuracy.
        epochs: Upper bound on passes over the images.
        minutes: Wall-clock budget; the schedule ends at whichever of ``epochs`` and ``minutes`` comes first.
        optimizer: ``muon`` (hidden matrices and convolutions by Muon, the rest by AdamW) or ``adamw``.
        lr: Learning rate of AdamW.
        muon_lr: Learning rate of Muon.
        warmup: Fraction of the schedule, at its beginning, in which the learning rates rise from 0.
        decay: Fraction of the schedule, at its end, in which they fall to 0; in between they are constant.
        ema: Decay per step of the exponential moving average of the weights; the averaged weights are exported.
        min_area: Least area of a random crop, as a fraction of the image's area.
        jitter: Strength of the random contrast, brightness and colour (see :func:`.augmentation.augment`).
        validation: Share of the labelled images that is held out and measured after every epoch; 0 for none.
        patience: Epochs without a better MAP@10 after which training stops early; 0 for never.
        whiten_head: Whether the finished network's head is replaced by one that whitens its features (see
            :mod:`cbir.indexer.train.network.whitened_head`).
        precision: ``auto``, ``float32``, ``bf16`` or ``fp16`` (see :mod:`cbir.indexer.train.precision`).
    """

    sizes: Sizes = ((64, 1.0),)
    epochs: float = 30.0
    minutes: float = 60.0
    batch: int = 64
    optimizer: str = "adamw"
    lr: float = 1e-3
    muon_lr: float = 0.01
    weight_decay: float = 0.02
    muon_decay: float = 0.01
    warmup: float = 0.05
    decay: float = 0.75
    ema: float = 0.999
    min_area: float = 0.6
    jitter: float = 0.1
    validation: float = 0.0
    patience: int = 0
    precision: str = "auto"
    whiten_head: bool = False
    seed: int = 0

    @property
    def size(self) -> int:
        """Side of the finished network's input in pixels."""
        return self.sizes[-1][0]

    def size_at(self, fraction: float) -> int:
        """Side of the input in pixels at a fraction (0..1) of the schedule."""
        return next((size for size, end in self.sizes if fraction < end), self.size)

    def rate_at(self, fraction: float) -> float:
        """Factor (0..1) of the learning rates at a fraction of the schedule: it rises, stays at 1, then falls to 0."""
        rise = min(1.0, fraction / self.warmup) if self.warmup > 0 else 1.0
        fall = min(1.0, (1 - fraction) / self.decay) if self.decay > 0 else 1.0
        return rise * max(0.0, fall)

    def check(self) -> None:
        """Check that every value is in its range.

        Raises:
            ConfigurationError: One is not; the message names it.
        """
        bounds: list[tuple[str, float, bool, str]] = [
            ("epochs", self.epochs, self.epochs > 0, "positive"),
            ("minutes", self.minutes, self.minutes > 0, "positive"),
            ("batch", self.batch, self.batch >= 2, "at least 2"),
            ("lr", self.lr, self.lr > 0, "positive"),
            ("muon-lr", self.muon_lr, self.muon_lr > 0, "positive"),
            ("ema", self.ema, 0 <= self.ema < 1, "from 0 to below 1"),
            ("min-area", self.min_area, 0 < self.min_area <= 1, "above 0 and at most 1"),
            ("jitter", self.jitter, 0 <= self.jitter < 1, "from 0 to below 1"),
            ("validation", self.validation, 0 <= self.validation < 1, "from 0 to below 1"),
            ("patience", self.patience, self.patience >= 0, "0 or more"),
        ]
        for name, value, good, must in bounds:
            if not good:
                raise ConfigurationError(f"--{name} is {value}; it must be {must}", reason="BAD_RECIPE")
        if self.optimizer not in ("muon", "adamw"):
            raise ConfigurationError(f"--optimizer is {self.optimizer!r}; known are muon, adamw", reason="BAD_RECIPE")


def parse_sizes(text: str) -> Sizes:
    """Read ``48:0.4,64:0.8,80:1.0``: sides in pixels, each with the fraction of the schedule at which it ends.

    ``64`` is short for ``64:1``.

    Raises:
        ValueError: The text has another form, a side lies outside 8..2048, or the fractions do not rise to 1.
    """
    sizes = []
    for part in text.split(","):
        side, _, end = part.partition(":")
        sizes.append((int(side), float(end or 1)))
    ends = [end for _, end in sizes]
    if not all(8 <= side <= 2048 for side, _ in sizes) or ends != sorted(set(ends)) or ends[0] <= 0 or ends[-1] != 1:
        raise ValueError(f"{text}: sides lie between 8 and 2048, and the fractions rise to 1")
    return tuple(sizes)
