"""Ensembles: which members embed an image, how each is projected, and how much its vote weighs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cbir.core.images import Crop

__all__ = [
    "BUILT_IN_FOLDER",
    "MEMBER_NAME",
    "WEIGHT_FILES",
    "EnsembleSpec",
    "InputSpec",
    "MemberSpec",
    "Metric",
]

#: Where the ensembles that ship with the package lie, and their weights.
BUILT_IN_FOLDER = Path(__file__).parent / "built_in"

Metric = str
#: What a member may be called, as its name becomes a folder's.
MEMBER_NAME = r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}"
#: How weights end that are files rather than tags.
WEIGHT_FILES = (".safetensors", ".onnx", ".tflite", ".xml")


@dataclass(frozen=True)
class InputSpec:
    """What a member's image input looks like; None leaves it to what the backend declares.

    Attributes:
        size: Side of the square input in pixels.
        mean: Per RGB channel, on the 0..1 scale.
        std: Likewise.
        interpolation: How the crop is resampled to the square.
    """

    size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: str | None = None


@dataclass(frozen=True)
class MemberSpec:
    """One member of an ensemble.

    Attributes:
        weights: A tag of the backend, or an absolute path of a weights or model file, or None for random weights.
        dim: Components kept after projection.
        metric: ``cosine`` (as the model gives it), ``pca`` (centred on the gallery) or ``glrt`` (learnt on it).
        index: ``auto``, ``exact``, ``faiss:<factory string>`` or ``annoy:<trees>``.
        text: Use the model's text tower, where its backend has them; False leaves it out.
        mirror: The embedding is the mean of those of the image and of its mirror image: better, at twice the cost.
    """

    name: str
    backend: str
    model: str
    weights: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    input: InputSpec = field(default_factory=InputSpec)
    dim: int = 256
    metric: Metric = "glrt"
    weight: float = 1.0
    index: str = "auto"
    text: bool = True
    mirror: bool = False

    @property
    def weights_file(self) -> Path | None:
        """The weights as a local file, or None where they are a tag or absent."""
        return Path(self.weights) if self.weights and self.weights.endswith(WEIGHT_FILES) else None

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` takes back."""
        return {
            "name": self.name,
            "backend": self.backend,
            "model": self.model,
            "weights": _portable(self.weights),
            "options": dict(self.options),
            "input": {k: v for k, v in vars(self.input).items() if v is not None},
            "dim": self.dim,
            "metric": self.metric,
            "weight": self.weight,
            "index": self.index,
            "text": self.text,
            "mirror": self.mirror,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MemberSpec:
        """Inverse of :meth:`to_json`."""
        given = dict(data["input"])
        for key in ("mean", "std"):
            if key in given:
                given[key] = tuple(given[key])
        return cls(**{**data, "input": InputSpec(**given), "weights": _local(data["weights"])})


@dataclass(frozen=True)
class EnsembleSpec:
    """A named set of members with one rule for cutting images."""

    name: str
    members: tuple[MemberSpec, ...]
    crop: Crop = Crop.CONTENT

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` takes back."""
        return {"name": self.name, "crop": str(self.crop), "members": [m.to_json() for m in self.members]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EnsembleSpec:
        """Inverse of :meth:`to_json`."""
        return cls(data["name"], tuple(MemberSpec.from_json(m) for m in data["members"]), Crop(data["crop"]))


def _portable(weights: str | None) -> str | None:
    """Name weights that ship with the package by their place in it, which differs from machine to machine."""
    if weights and Path(weights).parent == BUILT_IN_FOLDER:
        return f"package:{Path(weights).name}"
    return weights


def _local(weights: str | None) -> str | None:
    if weights and weights.startswith("package:"):
        return str(BUILT_IN_FOLDER / weights.removeprefix("package:"))
    return weights
