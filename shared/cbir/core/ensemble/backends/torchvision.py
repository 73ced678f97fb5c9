"""Backend torchvision: classification networks as feature extractors, without their last linear layer."""

from __future__ import annotations

import torch
import torchvision
from torch import nn

from cbir.core.ensemble.backends.weights import hub_unreachable, load_state, resolve_input, seeded
from cbir.core.ensemble.embedder import Embedder
from cbir.core.ensemble.runtime.input_format import InputFormat
from cbir.core.ensemble.runtime.run import run_network
from cbir.core.ensemble.spec import MemberSpec
from cbir.core.errors import EnsembleError

__all__ = ["classifier", "load"]

_HEADS = ("fc", "classifier", "heads", "head")


def load(member: MemberSpec, device: str, runtime: str, precision: str = "auto") -> Embedder:
    """Build ``member.model`` and put it onto a runtime.

    Weights: a ``.safetensors`` file in torchvision's names (classifier included), a weights tag such as
    ``IMAGENET1K_V2``, or none.

    Raises:
        EnsembleError: Unknown model or tag, weights of another architecture, or a hub that cannot be reached.
    """
    model, form = _build(member)
    parent, name, _ = _head(model, member)
    setattr(parent, name, nn.Identity())
    return run_network(model, resolve_input(member, form), device, runtime, member, precision)


def classifier(member: MemberSpec) -> torch.Tensor:
    """The (C, D) weights of the last linear layer, which a member's embedding is the input of.

    Raises:
        EnsembleError: As :func:`load`.
    """
    model, _ = _build(member)
    return _head(model, member)[2].weight


def _build(member: MemberSpec) -> tuple[nn.Module, InputFormat]:
    """The whole network and the input that its weights declare."""
    if member.model not in torchvision.models.list_models(module=torchvision.models):
        raise EnsembleError(
            f"torchvision has no classification model {member.model!r} (member {member.name!r})", reason="MODEL_UNKNOWN"
        )
    form = InputFormat(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")
    options = dict(member.options)
    file = member.weights_file
    if member.weights and not file:
        tags = {w.name: w for w in torchvision.models.get_model_weights(member.model)}
        if member.weights not in tags:
            raise EnsembleError(
                f"torchvision has no weights {member.weights!r} for {member.model!r}; known are {', '.join(tags)}",
                reason="WEIGHTS_UNKNOWN",
            )
        transform = tags[member.weights].transforms()
        form = InputFormat(
            transform.crop_size[0], tuple(transform.mean), tuple(transform.std), transform.interpolation.value
        )
        with hub_unreachable(member):
            # The library unpickles what it fetched, or found in its cache, with all that a pickle may do: so it is
            # looked through first by the unpickler that refuses everything but numbers.
            tags[member.weights].get_state_dict(progress=True, check_hash=True, weights_only=True)
            model = torchvision.models.get_model(member.model, weights=member.weights, **options)
    else:
        with seeded():
            model = torchvision.models.get_model(member.model, weights=None, **options)
        if file:
            load_state(model, file, member)
    return model, form


def _head(model: nn.Module, member: MemberSpec) -> tuple[nn.Module, str, nn.Linear]:
    """The last linear layer, whose name depends on the architecture: what holds it, its name there, and itself."""
    for name in _HEADS:
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear):
            return model, name, head
        if isinstance(head, nn.Sequential) and len(head) and isinstance(last := head[-1], nn.Linear):
            return head, str(len(head) - 1), last
    raise EnsembleError(
        f"torchvision model {member.model!r} has no final linear layer to drop: use backend timm for it",
        reason="MODEL_UNUSABLE",
    )
