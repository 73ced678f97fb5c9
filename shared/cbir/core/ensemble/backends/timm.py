"""Backend timm: networks as feature extractors, up to the pooling, or with a linear head."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from cbir.core.ensemble.backends.hub import HubWeights
from cbir.core.ensemble.backends.state_dict import read_state
from cbir.core.ensemble.backends.weights import hub_unreachable, load_state, resolve_input, seeded
from cbir.core.ensemble.embedder import Embedder
from cbir.core.ensemble.runtime.input_format import InputFormat
from cbir.core.ensemble.runtime.run import run_network
from cbir.core.ensemble.spec import MemberSpec
from cbir.core.errors import EnsembleError

__all__ = ["build_network", "classifier", "classifier_names", "load"]

#: Networks of these families end in a projection to where words are embedded, which has rows but no classes ..
_PROJECTING = ("clip", "siglip")
#: .. unless they were trained further, to this many classes.
_IMAGENET_CLASSES = 1000


def load(member: MemberSpec, device: str, runtime: str, precision: str = "auto") -> Embedder:
    """Build ``member.model`` with ``member.options`` and put it onto a runtime.

    Raises:
        EnsembleError: Unknown model, weights of another architecture, or a hub that cannot be reached.
    """
    model, form = build_network(member)
    return run_network(model, form, device, runtime, member, precision)


def build_network(member: MemberSpec) -> tuple[nn.Module, InputFormat]:
    """The network of a member as a torch module that maps (B, 3, S, S) to (B, D), and its input.

    Weights: a ``.safetensors`` file in timm's names, a file of torch in an installed package (its entries in the order
    of timm's state dict), a pretrained tag, or none.  With a file, a tag behind the model's name
    (``convnext_base.fb_in22k``) tells the input format that the weights were trained for.  The embedding is the pooled
    features, and a classifier in the file is ignored.  With ``num_classes`` in the options the embedding is the output
    of the classifier, which must be among the weights.  ``global_pool = "gem"`` in the options replaces the network's
    own pooling by the generalised mean.

    Raises:
        EnsembleError: Unknown model, weights of another architecture, or a hub that cannot be reached.
    """
    options = {"num_classes": 0, **member.options}
    # timm knows no such pooling: the network is made with its own, which then gives way.
    if pooling := options.get("global_pool") == "gem":
        del options["global_pool"]
    if not timm.is_model(member.model):
        close = timm.list_models(f"*{member.model.split('.')[0][:8]}*")[:5]
        raise EnsembleError(
            f"timm has no model {member.model!r} (member {member.name!r})"
            + (f"; did you mean one of {', '.join(close)}?" if close else ""),
            reason="MODEL_UNKNOWN",
        )
    file = member.weights_file
    if member.weights and not file:
        model = _pretrained(member, options)
    else:
        with seeded():
            model = timm.create_model(member.model, pretrained=False, **options)
        if file:
            ignored = () if options["num_classes"] else classifier_names(model)
            load_state(model, file, member, ignored, lambda: _whole_state(member))
    if pooling:
        _replace_pooling(model, member)
    config = timm.data.resolve_model_data_config(model)
    declared = InputFormat(config["input_size"][1], config["mean"], config["std"], config["interpolation"])
    return model, resolve_input(member, declared)


def _whole_state(member: MemberSpec) -> dict[str, torch.Tensor]:
    """Names and shapes of the model with timm's classifier; no memory is taken."""
    options = {k: v for k, v in member.options.items() if k != "global_pool"}
    with torch.device("meta"):
        return timm.create_model(member.model, pretrained=False, **options).state_dict()  # type: ignore[no-any-return]


class GeneralisedMean(nn.Module):
    """Pools (B, C, H, W) to (B, C) by the cubic mean over places, which hears the strongest more than a mean does.

    Radenovic, Tolias, Chum, "Fine-tuning CNN image retrieval with no human annotation", TPAMI 2019, with their usual
    exponent of 3.  Values below 0 count as 0: it is meant for networks whose last map has passed a rectifier.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = x.clamp(min=1e-6)
        return (x * x * x).mean((2, 3)).pow(1 / 3)


def _replace_pooling(model: nn.Module, member: MemberSpec) -> None:
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, timm.layers.SelectAdaptivePool2d)
    ]
    if len(places) != 1 or not places[0][0].get_submodule(places[0][1]).flatten:
        raise EnsembleError(
            f'timm\'s {member.model!r} (member {member.name!r}) pools in {len(places)} places that global_pool = "gem" '
            "could replace; it must be one: leave it out",
            reason="ENSEMBLE_INVALID",
        )
    setattr(*places[0], GeneralisedMean())


def classifier(member: MemberSpec) -> torch.Tensor | None:
    """The (C, D) weights of the classifier that a member's weights carry beside the network of :func:`build_network`.

    None where the embedding is not what the classifier was trained on, or where there is none.

    Raises:
        EnsembleError: As :func:`build_network`.
    """
    options = dict(member.options)
    if options.pop("num_classes", 0) or options.get("global_pool") == "gem" or not timm.is_model(member.model):
        return None
    found: torch.Tensor | None
    if file := member.weights_file:
        with torch.device("meta"):
            whole = timm.create_model(member.model, pretrained=False, **options)
        names = classifier_names(whole)
        found = read_state(file, member, whole.state_dict).get(f"{names[0]}.weight") if len(names) == 1 else None
    else:
        classes = timm.get_pretrained_cfg(f"{member.model}.{member.weights}").num_classes
        if not classes:
            return None
        model = _pretrained(member, {**options, "num_classes": classes})
        head = model.get_classifier()  # type: ignore[operator]
        found = head.weight if isinstance(head, nn.Linear | nn.Conv2d) else None
    projects = any(family in member.model for family in _PROJECTING)
    return None if projects and found is not None and len(found) != _IMAGENET_CLASSES else found


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the module or modules that timm calls the model's classifier."""
    names = model.pretrained_cfg.get("classifier") or ()  # type: ignore[operator,union-attr]
    return (names,) if isinstance(names, str) else tuple(names)


def _pretrained(member: MemberSpec, options: dict[str, Any]) -> nn.Module:
    """The model with the weights of the member's tag."""
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{member.model}.*")]
    if member.weights not in tags:
        raise EnsembleError(
            f"timm has no weights {member.weights!r} for {member.model!r} (member {member.name!r}); "
            f"known are {', '.join(tags) or 'none'}",
            reason="WEIGHTS_UNKNOWN",
        )
    name = f"{member.model}.{member.weights}"
    declared = timm.get_pretrained_cfg(name)
    if options["num_classes"] not in (0, declared.num_classes):
        # timm would give the classifier random weights, different at every start.
        raise EnsembleError(
            f"member {member.name!r} asks for {options['num_classes']} outputs, but its weights {member.weights!r} "
            f"have {declared.num_classes} classes: leave num_classes out of its options",
            reason="WEIGHTS_MISMATCH",
        )
    if declared.hf_hub_id and not declared.hf_hub_filename:
        weights = HubWeights(declared.hf_hub_id, ("model.safetensors", "pytorch_model.bin"), f' and model = "{name}"')
        if (file := weights.cached()) is not None:
            # custom_load is for formats of the weights' original source; the hub's files do not need it.
            overlay = {"file": str(file), "custom_load": False}
            return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)  # type: ignore[no-any-return]
        weights.check_reachable(member)
    with hub_unreachable(member):
        return timm.create_model(name, pretrained=True, **options)  # type: ignore[no-any-return]
