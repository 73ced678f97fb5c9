"""The files of a trained member: its weights in float16 and an ensemble file that refers to them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cbir.core.ensemble import InputFormat
from cbir.core.errors import EnsembleError
from cbir.indexer.train.network.student import StudentSpec

__all__ = ["TrainedMember", "ensemble_text", "export_member"]


@dataclass(frozen=True)
class TrainedMember:
    """The files that a training run wrote, and figures of the run.

    Attributes:
        weights: The ``.safetensors`` file.
        ensemble: The ensemble file, which ``cbir index`` takes.
        curves: Picture of the training curves.
        images: Images that were trained on or held out.
        classes: Classes among them.
        parameters: Parameters of the network.
        trained: Parameters that were trained; the others were frozen.
        unlabelled: Images left out because they have no label.
        skipped: Images left out because they could not be read.
        map_at_10: MAP@10 of the held-out images before training and with the exported weights; None where no images
            were held out.
        stopped: What ended the run: ``schedule`` or ``patience``.
    """

    weights: Path
    ensemble: Path
    curves: Path
    images: int
    classes: int
    parameters: int
    trained: int
    unlabelled: int = 0
    skipped: int = 0
    map_at_10: tuple[float, float] | None = None
    stopped: str = "schedule"

    def to_json(self) -> dict[str, Any]:
        """The document that ``cbir train --json`` prints."""
        files = {name: str(getattr(self, name)) for name in ("weights", "ensemble", "curves")}
        return {**vars(self), **files}


def export_member(network: nn.Module, spec: StudentSpec, form: InputFormat, out: Path) -> tuple[Path, Path]:
    """Write a network as an ensemble of one: ``<name>.safetensors`` (float16) and ``<name>.toml`` for ``cbir index``.

    If the network has a linear head (``get_classifier()``), the head is written too and its output is the embedding.

    Args:
        network: The network with the weights to write; it is not changed.
        spec: Names, model and options for the ensemble file.
        form: The input of the network, for the ensemble file.
        out: Folder of the two files.

    Returns:
        The paths of the weights and of the ensemble file.
    """
    from safetensors.torch import save

    state = network.state_dict()
    half = {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in state.items()}
    weights, ensemble = out / f"{spec.name}.safetensors", out / f"{spec.name}.toml"
    text = ensemble_text(spec, form, int(getattr(network, "num_classes", 0)))
    partial = weights.with_suffix(".partial")
    # save_file() would make a file that only its owner can read.
    partial.write_bytes(save(half))
    partial.replace(weights)
    ensemble.write_text(text)
    return weights, ensemble


def ensemble_text(spec: StudentSpec, form: InputFormat, head: int) -> str:
    """The text of the ensemble file for a member whose weights file lies beside it.

    Args:
        head: Number of outputs of the linear head; 0 without one.

    Raises:
        EnsembleError: The options cannot be written as TOML.
    """
    options: Mapping[str, Any] = {k: v for k, v in spec.options.items() if k != "num_classes"}
    options = {**options, "num_classes": head} if head else options
    listed = ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    given = f"size = {form.size}, mean = {list(form.mean)}, std = {list(form.std)}"
    text = f"""[ensemble]
name = "{spec.name}"
crop = "{spec.crop}"

[[members]]
name = "{spec.name}"
backend = "timm"
model = "{spec.model}"
weights = "{spec.name}.safetensors"
options = {{ {listed} }}
input = {{ {given}, interpolation = "{form.interpolation}" }}
dim = {spec.dim}
metric = "{spec.metric}"
"""
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise EnsembleError(
            f"the options {dict(options)} cannot be written to an ensemble file ({error}): use numbers, texts, "
            "true, false and lists of them",
            reason="BAD_OPTIONS",
        ) from error
    return text
