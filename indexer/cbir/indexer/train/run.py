"""One training run, from prepared images to the files of a member; distillation and fine-tuning share it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cbir.core.ensemble import InputFormat, member_fingerprint
from cbir.core.images import Crop
from cbir.indexer.train.checkpoint import Checkpoint
from cbir.indexer.train.curves import draw_curves
from cbir.indexer.train.export import TrainedMember, export_member
from cbir.indexer.train.images import TrainingImages
from cbir.indexer.train.loop import TrainingLoop
from cbir.indexer.train.network.student import StudentSpec
from cbir.indexer.train.network.whitened_head import whiten_head
from cbir.indexer.train.precision import Precision
from cbir.indexer.train.progress import TrainingProgress
from cbir.indexer.train.recipe import Recipe
from cbir.indexer.train.validation import embed, leave_one_out_map

__all__ = ["random_batches", "train_and_export"]


def random_batches(rows: NDArray[np.int64], recipe: Recipe) -> Callable[[int], list[NDArray[np.int64]]]:
    """A function that gives the batches of an epoch: the rows in random order, without the last incomplete batch."""

    def batches(epoch: int) -> list[NDArray[np.int64]]:
        order = np.random.default_rng((recipe.seed, epoch)).permutation(rows)
        count = max(1, len(order) // recipe.batch)
        # Ascending within a batch, so that the memory map is read in one direction.
        return [np.sort(order[i * recipe.batch : (i + 1) * recipe.batch]) for i in range(count)]

    return batches


def train_and_export(
    network: nn.Module,
    objective: nn.Module,
    spec: StudentSpec,
    form: InputFormat,
    images: TrainingImages,
    held_out: NDArray[np.int64],
    batches: Callable[[int], Sequence[NDArray[np.int64]]],
    recipe: Recipe,
    out: Path,
    precision: Precision,
    origin: Mapping[str, Any],
    on_training: Callable[[TrainingProgress], None] | None = None,
) -> TrainedMember:
    """Train, and write ``<name>.safetensors``, ``.toml``, ``.json`` and ``.curves.png`` into ``out``.

    A run that was stopped goes on from ``<name>.checkpoint``; one that had finished only writes its files again.

    Args:
        held_out: Rows of the images to validate on.
        batches: Gives the row numbers of every batch of an epoch.
        origin: What else the run is made of (teachers, objective); it goes into the checkpoint's identity and the
            ``.json``.

    Raises:
        EnsembleError: The checkpoint belongs to another run.
        KeyboardInterrupt: The user interrupted; the checkpoint was saved.
    """
    start = member_fingerprint(spec.as_member(), Crop.NONE)
    identity = json.dumps([asdict(spec), asdict(recipe), start, images.content, dict(origin)], default=str)
    checkpoint = Checkpoint(out / f"{spec.name}.checkpoint", hashlib.sha256(identity.encode()).hexdigest())

    def validate(judged: nn.Module) -> float:
        unit = embed(judged, images.pixels, held_out, recipe.size, form, precision)
        return leave_one_out_map(unit, images.codes[held_out])

    parameters = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    loop = TrainingLoop(
        network, objective, images.pixels, batches, recipe, form, checkpoint, precision,
        validate=validate if len(held_out) else None, on_progress=on_training,
    )  # fmt: skip
    result = loop.run()
    network.load_state_dict(result.state)
    network = network.cpu()
    if recipe.whiten_head:
        whiten_head(network, images.pixels, np.setdiff1d(np.arange(len(images)), held_out), recipe.size, form)
    weights, ensemble = export_member(network, spec, form, out)
    curves = out / f"{spec.name}.curves.png"
    draw_curves(result.history, result.best, spec.name, curves)
    facts = {
        "student": asdict(spec),
        "recipe": asdict(recipe),
        **origin,
        "images": len(images),
        "held_out": len(held_out),
        "classes": len(images.classes),
        "parameters": parameters,
        "trained": trained,
        "stopped": result.stopped,
        "seconds": round(result.seconds, 1),
        "best": result.best,
        "history": result.history,
    }
    (out / f"{spec.name}.json").write_text(json.dumps(facts, indent=1, default=str))
    measured = [point["map@10"] for point in result.history if "map@10" in point]
    change = (measured[0], result.best["map@10"]) if result.best else None
    return TrainedMember(
        weights, ensemble, curves, len(images), len(images.classes), parameters, trained, images.unlabelled,
        images.skipped, change, result.stopped,
    )  # fmt: skip
