"""The description of an ensemble: its members, and how each is embedded, projected, indexed and weighted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cbir.core.ensemble.member_options import option_problem
from cbir.core.ensemble.package_files import built_in_folders, is_package_file, package_file, package_place
from cbir.core.errors import EnsembleError
from cbir.core.images import Crop

__all__ = [
    "MEMBER_NAME",
    "TORCH_FILES",
    "WEIGHT_FILES",
    "EnsembleSpec",
    "InputSpec",
    "MemberSpec",
    "Metric",
]

Metric = str
#: Pattern of a member's name, which also becomes the name of a folder.
MEMBER_NAME = r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}"
#: Endings that mark weights as a file; all others are a tag.
WEIGHT_FILES = (".safetensors", ".onnx", ".tflite", ".xml")
#: Endings of torch's files, which are read from an installed package and with a known digest only.
TORCH_FILES = (".pth", ".pt")
#: What a tag of a backend looks like: no folder, no address, and nothing that a library would take for a checkpoint.
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt", ".tar", ".zip", ".npz")


@dataclass(frozen=True)
class InputSpec:
    """The format of a member's image input; None means what the backend declares for the model.

    Attributes:
        size: Side of the square input in pixels.
        mean: Subtracted from each RGB channel, on the 0..1 scale.
        std: Divides each channel afterwards.
        interpolation: How the cropped image is resampled to the square.
    """

    size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: str | None = None


@dataclass(frozen=True)
class MemberSpec:
    """One member of an ensemble.

    However it came to be, from an ensemble file, from the manifest of an index or in code, what could make a library
    read a file, fetch an address or run code is refused here, before any library sees it.

    Raises:
        EnsembleError: ``MEMBER_REFUSED``: a name that is no folder's, weights that are neither a tag nor a file of
            numbers, or an option that backends are not given (:mod:`cbir.core.ensemble.member_options`).

    Attributes:
        name: Unique in the ensemble.
        backend: The library that builds the model, such as ``timm``.
        model: The model's name in that library.
        weights: A tag of the backend, or the absolute path of a weights or model file, or ``package:NAME/FILE`` for a
            file of an installed package (:mod:`cbir.core.ensemble.package_files`), or None for random weights.
        sha256: The digest that the weights file must have, 64 hexadecimal digits; None: any.
        options: Further arguments of the backend.
        dim: Components kept by the projection.
        metric: ``cosine`` (no centring), ``pca`` (centred on the gallery) or ``glrt`` (that and the metric, fitted on
            the gallery).
        weight: Of the member's similarities in the fused score, before tuning.
        index: ``auto``, ``exact``, ``faiss:<factory string>`` or ``annoy:<trees>``.
        text: Whether to use the model's text tower, where it has one.
        mirror: Whether to embed an image as the mean of its embedding and that of its mirror image: more accurate, at
            twice the cost.
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
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(MEMBER_NAME, self.name):
            raise self._refused(f"{self.name!r} is no name: use letters, digits, '-', '_' and '.', at most 64")
        if not isinstance(self.backend, str) or not isinstance(self.model, str):
            raise self._refused(f"backend {self.backend!r} and model {self.model!r} must be texts")
        self._check_weights()
        if not isinstance(self.options, Mapping):
            raise self._refused(f"options must be a table, not {self.options!r}")
        if problem := option_problem(self.backend, self.options):
            raise self._refused(f"it asks for {problem}")

    def _check_weights(self) -> None:
        weights, sha256 = self.weights, self.sha256
        if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256)):
            raise self._refused(f"sha256 {sha256!r} is no digest: write 64 hexadecimal digits in lower case")
        if weights is None:
            return
        if isinstance(weights, str) and is_package_file(weights):
            package, _ = package_place(weights)
            # Tensors and nothing else are taken from them, and the package's own bytes are known.
            if package and weights.endswith(TORCH_FILES) and sha256:
                return
        if (
            not isinstance(weights, str)
            or weights.lower().endswith(_PICKLES)
            or not (weights.endswith(WEIGHT_FILES) or _TAG.fullmatch(weights))
        ):
            raise self._refused(
                f"weights {weights!r} are neither a tag of a backend nor a file of numbers "
                f"({', '.join(WEIGHT_FILES)}, or torch's in a package, with its sha256); others may hold code"
            )

    def _refused(self, problem: str) -> EnsembleError:
        return EnsembleError(f"member {str(self.name)[:64]!r} is refused: {problem}", reason="MEMBER_REFUSED")

    @property
    def weights_file(self) -> Path | None:
        """The weights as a local file; None where they are a tag, or random.

        Raises:
            EnsembleError: They lie in a package that is not installed, or that does not hold them.
        """
        if self.weights and is_package_file(self.weights):
            return package_file(self.weights)
        return Path(self.weights) if self.weights and self.weights.endswith(WEIGHT_FILES) else None

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
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
            # Earlier releases know no such key: only members that have one need a later one.
            **({"sha256": self.sha256} if self.sha256 else {}),
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
    """A named set of members, and how images are cropped for all of them."""

    name: str
    members: tuple[MemberSpec, ...]
    crop: Crop = Crop.CONTENT

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"name": self.name, "crop": str(self.crop), "members": [m.to_json() for m in self.members]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EnsembleSpec:
        """Inverse of :meth:`to_json`."""
        return cls(data["name"], tuple(MemberSpec.from_json(m) for m in data["members"]), Crop(data["crop"]))


def _portable(weights: str | None) -> str | None:
    """Weights that come with the package as ``package:<file>``, because the package's path differs between machines."""
    folder = Path(weights).parent if weights else None
    if any(folder in (place, place.resolve()) for place in built_in_folders()):
        return f"package:{Path(str(weights)).name}"
    return weights


def _local(weights: str | None) -> str | None:
    if weights and is_package_file(weights):
        # What lies in other packages keeps its name, which is the same on every machine.
        return weights if package_place(weights)[0] else str(package_file(weights))
    return weights
