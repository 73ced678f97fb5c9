"""The network that is trained (the student): how it is built, and its output at every location of its feature map."""

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

#: Input of a network that is not the member of an ensemble file.
_INPUT = InputSpec(None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")


@dataclass(frozen=True)
class StudentSpec:
    """The network to train, and what is written about it to its ensemble file.

    Attributes:
        name: The member's name in the ensemble file.
        model: Name of the model in timm.
        options: Keyword arguments for timm's factory.
        weights: Weights to start from: a ``.safetensors`` file, a pretrained tag of timm, or None for random ones.
        input: Mean, standard deviation and resampling of the input; its size comes from the recipe.
        image_size: Side in pixels at which training images are kept; 0 for the recipe's input size.
        crop: How images are cropped first, both in training and in the ensemble file.
        dim: Dimensions after projection, for the ensemble file.
        metric: Metric, for the ensemble file.
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
        """The network of a member, to continue training from its weights.

        Raises:
            EnsembleError: There is no such member, or its backend does not give networks that can be trained.
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
        """The network with its starting weights as a member, from which the backend builds it."""
        return MemberSpec(self.name, "timm", self.model, self.weights, self.options, self.input)


def build_student(spec: StudentSpec, width: int | None = None) -> tuple[nn.Module, InputFormat]:
    """Build the network with its starting weights.

    Args:
        width: Number of outputs of the network's linear head; None keeps what the options say.  The head's weights are
            loaded if the weights file has a head of that width, and drawn at random otherwise.

    Raises:
        EnsembleError: The name or model is unknown, the options are not accepted, or the weights do not fit.
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
    # The weights have no head of this width; if they do not fit at all, building without a head fails again.
    network, form = build_network(replace(member, options={**member.options, "num_classes": 0}))
    with seeded():
        network.reset_classifier(width)  # type: ignore[operator]
    return network, form


def dense_embeddings(network: nn.Module, features: Tensor) -> Tensor:
    """The network's output at every location of its feature map.

    The head is applied to each location alone, as if the whole map were equal to it.

    Args:
        features: What the network's ``forward_features`` returns: (B, C, H, W), (B, H, W, C) or (B, tokens, C).

    Returns:
        (B, locations, D), the locations row by row.  If the head is average pooling followed by a linear map, the mean
        over the locations equals the network's output.
    """
    if features.ndim == 4:
        first = features.shape[1] == getattr(network, "num_features", features.shape[1])
        cells = features.flatten(2).transpose(1, 2) if first else features.flatten(1, 2)
        flat = cells.flatten(0, 1)
        lone = flat[:, :, None, None] if first else flat[:, None, None, :]
    else:
        prefix = int(getattr(network, "num_prefix_tokens", 0))
        cells = features[:, prefix:]
        # Every token, the prefix (class) tokens too, is set to the location's: the head may read any of them.
        lone = cells.flatten(0, 1)[:, None, :].expand(-1, prefix + 1, -1)
    out: Tensor = network.forward_head(lone)  # type: ignore[operator]
    return out.reshape(cells.shape[0], cells.shape[1], -1)


def keep_head_norms(network: nn.Module, size: int) -> None:
    """Put batch norms after the pooling into eval mode; call it after every ``train()``.

    They are applied to single locations as well as to pooled features, whose statistics differ.
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
    """Run the network on blank images of several sizes to learn the shape of its output.

    Returns:
        The length of the output, and the number of locations a side of the feature map at the last of the sizes (0
        where the network has no square map).

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
