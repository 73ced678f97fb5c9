"""The training loop: augmentation, optimisation, averaging of weights, validation and checkpoints."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cbir.core.ensemble import InputFormat
from cbir.indexer.train.augmentation import augment, random_views
from cbir.indexer.train.checkpoint import Checkpoint, deferred_interrupt
from cbir.indexer.train.network.layers import keep_frozen_norms
from cbir.indexer.train.network.student import keep_head_norms
from cbir.indexer.train.optimiser import Muon, make_optimisers
from cbir.indexer.train.precision import Precision
from cbir.indexer.train.progress import Position, Result, TrainingProgress
from cbir.indexer.train.recipe import Recipe
from cbir.indexer.train.validation import normalised

__all__ = ["Objective", "TrainingLoop"]

#: Gradients of the parameters that AdamW trains are clipped to this norm; Muon's steps do not depend on it.
_MOST_GRADIENT = 2.0
#: Fraction of the schedule between two points of the training curves.
_POINT = 0.01


class Objective(Protocol):
    """What is minimised: a torch module, which may have parameters and buffers of its own (such as a classifier)."""

    def __call__(
        self, network: nn.Module, images: Tensor, rows: NDArray[np.int64], views: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its parts by name for the training curves.

        Args:
            images: (B, 3, size, size) augmented and normalised images.
            rows: (B,) row numbers of the images.
            views: (B, 2, 3) the crop of each (see :func:`.augmentation.random_views`).
        """
        ...


class TrainingLoop:
    """Trains the parameters of ``network`` and ``objective`` that require gradients.

    If there is a checkpoint of the same run, training goes on from it.

    Args:
        network: A timm network.
        objective: See :class:`Objective`.
        pixels: (N, H, W, 3) uint8 images, possibly a memory map.
        batches: Gives the row numbers of every batch of an epoch; must always give the same for the same epoch.
        form: Input of the network, for its mean and standard deviation.
        validate: Measures MAP@10 of a network; called before training, after every epoch and at the end.

    Raises:
        EnsembleError: The checkpoint belongs to another run.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: nn.Module,
        pixels: NDArray[np.uint8],
        batches: Callable[[int], Sequence[NDArray[np.int64]]],
        recipe: Recipe,
        form: InputFormat,
        checkpoint: Checkpoint,
        precision: Precision,
        *,
        validate: Callable[[nn.Module], float] | None = None,
        on_progress: Callable[[TrainingProgress], None] | None = None,
    ) -> None:
        torch.manual_seed(recipe.seed)
        device = precision.device
        self.recipe, self.form, self.checkpoint, self.precision = recipe, form, checkpoint, precision
        self.pixels, self.batches, self.validate, self.report = pixels, batches, validate, on_progress
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective = objective.to(device)
        self.optimisers = make_optimisers(self.network, self.objective, recipe)
        self.rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in self.optimisers]
        self.clipped = [
            p for o in self.optimisers if not isinstance(o, Muon) for group in o.param_groups for p in group["params"]
        ]
        self.scaler = torch.amp.GradScaler(device, enabled=precision.scaled)
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.best_state: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.mean = torch.tensor(form.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(form.std, device=device).view(1, 3, 1, 1)
        self.at = Position()
        self.order = list(batches(0))
        self.total = max(1, int(recipe.epochs * len(self.order)))
        self._resume()

    def _resume(self) -> None:
        state = self.checkpoint.load(self.precision.device)
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        self.objective.load_state_dict(state["objective"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])
        self.average, self.best_state = state["average"], state["best_state"]
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["random"].cpu())
        self.at = Position(**state["position"])
        self.order = list(self.batches(self.at.epoch))

    def _save(self) -> None:
        self.checkpoint.save(
            {
                "network": self.network.state_dict(),
                "objective": self.objective.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
                "scaler": self.scaler.state_dict(),
                "average": self.average,
                "best_state": self.best_state,
                "generator": self.generator.get_state(),
                "random": torch.get_rng_state(),
                "position": vars(self.at),
            }
        )

    @property
    def fraction(self) -> float:
        return max(self.at.step / self.total, self.at.spent / (60 * self.recipe.minutes))

    @property
    def epoch(self) -> float:
        return self.at.epoch + self.at.batch / len(self.order)

    def run(self) -> Result:
        """Train to the end of the schedule, or until validation stops improving.

        Raises:
            KeyboardInterrupt: The user interrupted; the checkpoint was saved.
        """
        at = self.at
        saved = time.monotonic()
        started = saved - at.spent
        with deferred_interrupt() as pressed:
            try:
                if at.measured < 0:
                    self._validate()
                self._set_mode()
                while not at.stopped:
                    if self.fraction >= 1:
                        at.stopped = "schedule"
                        break
                    self._step(self.order[at.batch])
                    at.step, at.batch = at.step + 1, at.batch + 1
                    at.spent = time.monotonic() - started
                    self._note_progress()
                    if at.batch == len(self.order):
                        self._end_epoch()
                    if pressed():
                        raise KeyboardInterrupt
                    if time.monotonic() - saved > self.checkpoint.seconds:
                        self._save()
                        saved = time.monotonic()
                if at.measured < self.epoch:
                    self._validate()
                self._save()
            except KeyboardInterrupt:
                self._save()
                raise
        state = self.best_state or self.average
        kept = {k: v.float() if v.dtype.is_floating_point else v for k, v in state.items()}
        # safetensors does not take channels_last tensors.
        kept = {k: v.cpu().contiguous() for k, v in kept.items()}
        return Result(kept, at.history, at.best, at.stopped, at.spent)

    def _set_mode(self) -> None:
        self.network.train()
        self.objective.train()
        keep_frozen_norms(self.network)
        keep_head_norms(self.network, self.recipe.size)

    def _step(self, rows: NDArray[np.int64]) -> None:
        recipe, fraction = self.recipe, self.fraction
        rate = recipe.rate_at(fraction)
        for optimiser, rates in zip(self.optimisers, self.rates, strict=True):
            for group, highest in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = highest * rate
        views = random_views(len(rows), recipe.min_area, self.generator)
        images = normalised(self.pixels[rows], self.precision.device)
        images = augment(images, views, recipe.size_at(fraction), recipe.jitter, self.generator)
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with self.precision.autocast():
            loss, parts = self.objective(self.network, images, rows, views)
        self.scaler.scale(loss).backward()
        for optimiser in self.optimisers:
            self.scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(self.clipped, _MOST_GRADIENT)
        for optimiser in self.optimisers:
            self.scaler.step(optimiser)
            optimiser.zero_grad(set_to_none=True)
        self.scaler.update()
        self._average()
        for name, value in {"loss": loss, **parts}.items():
            now = float(value.detach())
            self.at.losses[name] = 0.97 * self.at.losses.get(name, now) + 0.03 * now

    @torch.no_grad()
    def _average(self) -> None:
        # A shorter average at first, so that the untrained weights leave it quickly.
        keep = min(self.recipe.ema, (2 + self.at.step) / (11 + self.at.step))
        for name, value in self.network.state_dict().items():
            if value.dtype.is_floating_point:
                self.average[name].lerp_(value, 1 - keep)
            else:
                self.average[name].copy_(value)

    def _end_epoch(self) -> None:
        self._validate()
        self.at.epoch, self.at.batch = self.at.epoch + 1, 0
        self.order = list(self.batches(self.at.epoch))
        if self.recipe.patience and self.validate and self.at.stale >= self.recipe.patience:
            self.at.stopped = "patience"

    def _validate(self) -> None:
        """Validate the averaged weights, keep them if they are the best so far, and add a point to the curves."""
        at = self.at
        at.measured = self.epoch
        point = self._point()
        if self.validate:
            judged = copy.deepcopy(self.network)
            judged.load_state_dict(self.average)
            point["map@10"] = self.validate(judged)
            if at.best is None or point["map@10"] > at.best["map@10"]:
                at.best, at.stale = dict(point), 0
                self.best_state = {k: v.detach().clone() for k, v in self.average.items()}
            else:
                at.stale += 1
        if at.losses or self.validate:
            at.history.append(point)

    def _point(self) -> dict[str, float]:
        spent = round(self.at.spent, 1)
        return {"epoch": self.epoch, "fraction": min(1.0, self.fraction), "seconds": spent, **self.at.losses}

    def _note_progress(self) -> None:
        at, fraction = self.at, self.fraction
        if fraction - (at.history[-1]["fraction"] if at.history else 0.0) >= _POINT:
            at.history.append(self._point())
        if self.report is not None:
            maps = [point["map@10"] for point in at.history if "map@10" in point]
            rate = at.step * len(self.order[0]) / max(at.spent, 1e-9)
            left = at.spent / max(fraction, 1e-9) - at.spent
            last = maps[-1] if maps else None
            self.report(
                TrainingProgress(min(1.0, fraction), at.step, self.epoch, dict(at.losses), last, rate, max(0.0, left))
            )
