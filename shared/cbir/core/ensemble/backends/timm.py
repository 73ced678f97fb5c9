"""Backend timm: networks as feature extractors, up to the pooling, or with a linear head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm

from cbir.core.ensemble.backends.hub import HubWeights
from cbir.core.ensemble.backends.weights import hub_unreachable, load_state, resolve_input, seeded
from cbir.core.ensemble.embedder import Embedder
from cbir.core.ensemble.runtime.input_format import InputFormat
from cbir.core.ensemble.runtime.run import run_network
from cbir.core.ensemble.spec import MemberSpec
from cbir.core.errors import EnsembleError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_network", "classifier_names", "load"]


def load(member: MemberSpec, device: str, runtime: str, precision: str = "auto") -> Embedder:
    """Build ``member.model`` with ``member.options`` and put it onto a runtime.

    Raises:
        EnsembleError: Unknown model, weights of another architecture, or a hub that cannot be reached.
    """
    model, form = build_network(member)
    return run_network(model, form, device, runtime, member, precision)


def build_network(member: MemberSpec) -> tuple[nn.Module, InputFormat]:
    """The network of a member as a torch module that maps (B, 3, S, S) to (B, D), and its input.

    Weights: a ``.safetensors`` file in timm's names, a pretrained tag, or none.  With a file, a tag behind the model's
    name (``convnext_base.fb_in22k``) tells the input format that the weights were trained for.  The embedding is the
    pooled features, and a classifier in the file is ignored.  With ``num_classes`` in the options the embedding is the
    output of the classifier, which must be among the weights.

    Raises:
        EnsembleError: Unknown model, weights of another architecture, or a hub that cannot be reached.
    """
    options = {"num_classes": 0, **member.options}
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
            load_state(model, file, member, ignore=() if options["num_classes"] else classifier_names(model))
    config = timm.data.resolve_model_data_config(model)
    declared = InputFormat(config["input_size"][1], config["mean"], config["std"], config["interpolation"])
    return model, resolve_input(member, declared)


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
