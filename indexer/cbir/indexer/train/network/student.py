"""The network that is trained: built from timm or from a member of an ensemble, and seen location by location."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from cbir.core.ensemble import MEMBER_NAME, EnsembleSpec, InputFormat, InputSpec, MemberSpec, build_network, seeded
from cbir.core.errors import EnsembleError
from cbir.core.images import Crop

__all__ = ["StudentSpec", "build_student", "dense_embeddings", "keep_head_norms", "probe"]

#: Input of networks that no ensemble file describes.
_INPUT = InputSpec(None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")


@dataclass(frozen=True)
class StudentSpec:
    """The network to train, and what the ensemble file will say of it.

    Attributes:
        name: The member's name in the ensemble file.
        model: timm's name.
        options: For timm's factory.
        weights: A ``.safetensors`` file or a tag of timm's to start from, or None for random weights.
        input: Mean, std and resampling of the input; the size is the recipe's.
        image_size: Side in pixels at which training images are kept; 0 means the recipe's input size.
        crop: How images are cut before they are seen, in training and in the ensemble file.
        dim: Components after projection, for the ensemble file.
        metric: For the ensemble file.
    """

    name: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    input: InputSpec = _INPUT
    image_size: int = 0
    crop: Crop = Crop.CONTENT
    dim: int = 256
    metric: str = "glrt"

    @classmethod
    def of_member(cls, ensemble: EnsembleSpec, member: str, name: str, image_size: int = 0) -> StudentSpec:
        """The network of a member, with its weights, to go on from.

        Raises:
            EnsembleError: There is no such member, or its backend's networks cannot be trained here.
        """
        found = {m.name: m for m in ensemble.members}
        if member not in found:
            raise EnsembleError(
                f"the ensemble {ensemble.name!r} has no member {member!r}; it has {', '.join(found)}",
                reason="MEMBER_UNKNOWN",
            )
        spec = found[member]
        if spec.backend != "timm":
            raise EnsembleError(
                f"member {member!r} is of backend {spec.backend}: only members of backend timm can be trained",
                reason="BACKEND_UNKNOWN",
            )
        return cls(
            name, spec.model, spec.options, spec.weights, spec.input, image_size, ensemble.crop, spec.dim, spec.metric
        )

    def as_member(self) -> MemberSpec:
        """The starting point as a member, which the backend can build."""
        return MemberSpec(self.name, "timm", self.model, self.weights, self.options, self.input)


def build_student(spec: StudentSpec, width: int | None = None) -> tuple[nn.Module, InputFormat]:
    """Build the network with its starting weights.

    Args:
        width: Outputs of the linear head that becomes part of the network; None keeps what the options say.  A head in
            the weights is kept if it has that many outputs, and drawn at random otherwise.

    Raises:
        EnsembleError: A bad name or model, options that it does not take, weights that do not fit.
    """
    if not re.fullmatch(MEMBER_NAME, spec.name):
        raise EnsembleError(
            f"a member may not be called {spec.name!r}: use letters, digits, '-', '_' and '.'", reason="BAD_NAME"
        )
    try:
        return _with_head(spec.as_member(), width) if width else build_network(spec.as_member())
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise EnsembleError(
            f"timm cannot build {spec.model!r} with {dict(spec.options)} ({error}): check model and options",
            reason="MODEL_UNKNOWN",
        ) from error


def _with_head(member: MemberSpec, width: int) -> tuple[nn.Module, InputFormat]:
    try:
        return build_network(replace(member, options={**member.options, "num_classes": width}))
    except EnsembleError as error:
        if error.reason != "WEIGHTS_MISMATCH":
            raise
    # The weights have no such head, or do not fit at all, of which this complains once more.
    network, form = build_network(replace(member, options={**member.options, "num_classes": 0}))
    with seeded():
        network.reset_classifier(width)  # type: ignore[operator]
    return network, form


def dense_embeddings(network: nn.Module, features: Tensor) -> Tensor:
    """The network's output at every location, as if the image were that location throughout.

    Args:
        features: What the network's ``forward_features`` gives: (B, C, H, W), (B, H, W, C) or (B, tokens, C).

    Returns:
        (B, locations, D), row by row.  Where the head is average pooling and a linear map, the mean over the locations
        is the network's output.
    """
    if features.ndim == 4:
        first = features.shape[1] == getattr(network, "num_features", features.shape[1])
        cells = features.flatten(2).transpose(1, 2) if first else features.flatten(1, 2)
        flat = cells.flatten(0, 1)
        lone = flat[:, :, None, None] if first else flat[:, None, None, :]
    else:
        prefix = int(getattr(network, "num_prefix_tokens", 0))
        cells = features[:, prefix:]
        # Whichever token the head looks at, it finds the location's.
        lone = cells.flatten(0, 1)[:, None, :].expand(-1, prefix + 1, -1)
    out: Tensor = network.forward_head(lone)  # type: ignore[operator]
    return out.reshape(cells.shape[0], cells.shape[1], -1)


def keep_head_norms(network: nn.Module, size: int) -> None:
    """Put batch norms behind the pooling into eval mode; call it after every ``train()``.

    They see single locations as well as pooled ones, whose statistics differ.
    """
    behind: list[nn.Module] = []
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_hook(lambda module, *_: behind.append(module)) for norm in norms]
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        device = next(network.parameters()).device
        with torch.no_grad():
            features = network.forward_features(torch.zeros(1, 3, size, size, device=device))  # type: ignore[operator]
            behind.clear()
            network.forward_head(features)  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    for module in behind:
        module.eval()


def probe(network: nn.Module, sizes: tuple[int, ...]) -> tuple[int, int]:
    """Width of the output and locations a side at the last of the sizes (0: it has no square map of them).

    Raises:
        EnsembleError: The network takes no input of one of the sizes.
    """
    network.eval()
    width = side = 0
    for size in sizes:
        try:
            with torch.no_grad():
                features = network.forward_features(torch.zeros(1, 3, size, size))  # type: ignore[operator]
                width = network.forward_head(features).flatten(1).shape[1]  # type: ignore[operator]
                locations = dense_embeddings(network, features).shape[1]
        except (RuntimeError, AssertionError, ValueError, AttributeError, IndexError) as error:
            detail = " ".join(str(error).split())[:160]
            raise EnsembleError(
                f"{type(network).__name__} takes no input of {size} pixels ({detail}): give other --sizes, or options "
                "such as img_size",
                reason="BAD_SIZE",
            ) from error
        side = math.isqrt(locations)
        side = side if side * side == locations else 0
    return width, side
