"""The files a run leaves: weights in float16, an ensemble file that names them, the recipe and the curves."""

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
    """What a training run left.

    Attributes:
        map_at_10: Of the held-out images before training and for the weights that were kept; None: not measured.
        unlabelled: Images left out for want of a label.
        skipped: Images that could not be read.
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
        """The document `cbir train --json` prints."""
        files = {name: str(getattr(self, name)) for name in ("weights", "ensemble", "curves")}
        return {**vars(self), **files}


def export_member(network: nn.Module, spec: StudentSpec, form: InputFormat, out: Path) -> tuple[Path, Path]:
    """Write a network as a member: ``<name>.safetensors`` (float16) and ``<name>.toml``, which `cbir index` takes.

    The linear head, if the network has one (``get_classifier()``), is written with it and its output is the embedding;
    a further linear map can be folded into that head before this is called.

    Args:
        network: With the weights to write; it is not changed.
        form: Its input, which the ensemble file repeats.

    Returns:
        The paths of the weights and of the ensemble file.
    """
    from safetensors.torch import save

    state = network.state_dict()
    half = {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in state.items()}
    weights, ensemble = out / f"{spec.name}.safetensors", out / f"{spec.name}.toml"
    text = ensemble_text(spec, form, int(getattr(network, "num_classes", 0)))
    partial = weights.with_suffix(".partial")
    # Not save_file(), which lets only the owner read the file.
    partial.write_bytes(save(half))
    partial.replace(weights)
    ensemble.write_text(text)
    return weights, ensemble


def ensemble_text(spec: StudentSpec, form: InputFormat, head: int) -> str:
    """The ensemble file of a member whose weights lie beside it.

    Args:
        head: Outputs of the linear head, 0 without one.

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
