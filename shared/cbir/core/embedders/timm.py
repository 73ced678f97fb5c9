"""Networks of timm, as feature extractors (pooled, before the classifier)."""

from __future__ import annotations

from typing import Any

import timm

from cbir.core.embedder import Embedder
from cbir.core.embedders.hub import HubWeights
from cbir.core.embedders.weights import hub_unreachable, load_state, resolve_input, seeded
from cbir.core.ensemble import MemberSpec
from cbir.core.errors import EnsembleError
from cbir.core.runtime import InputFormat, run

__all__ = ["load"]


def load(member: MemberSpec, device: str, runtime: str) -> Embedder:
    """Build ``member.model`` with ``member.options`` and put it onto a runtime.

    Weights: a ``.safetensors`` file in timm's names (a classifier in it is dropped), a pretrained tag, or none.  With
    a file, a tag behind the model's name (``convnext_base.fb_in22k``) tells which input the weights were trained for.

    Raises:
        EnsembleError: Unknown model, weights of another architecture, or a hub that cannot be reached.
    """
    options = {**member.options, "num_classes": 0}
    if not timm.is_model(member.model):
        close = timm.list_models(f"*{member.model.split('.')[0][:8]}*")[:5]
        raise EnsembleError(
            f"timm has no model {member.model!r} (member {member.name!r})"
            + (f"; did you mean one of {', '.join(close)}?" if close else ""),
            reason="MODEL_UNKNOWN",
        )
    file = member.weights_file
    if member.weights and not file:
        tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{member.model}.*")]
        if member.weights not in tags:
            raise EnsembleError(
                f"timm has no weights {member.weights!r} for {member.model!r} (member {member.name!r}); "
                f"known are {', '.join(tags) or 'none'}",
                reason="WEIGHTS_UNKNOWN",
            )
        model = _pretrained(member, options)
    else:
        with seeded():
            model = timm.create_model(member.model, pretrained=False, **options)
        if file:
            head = model.pretrained_cfg.get("classifier") or ()
            load_state(model, file, member, ignore=(head,) if isinstance(head, str) else tuple(head))
    config = timm.data.resolve_model_data_config(model)
    declared = InputFormat(config["input_size"][1], config["mean"], config["std"], config["interpolation"])
    form = resolve_input(member, declared)
    return run(model, form, device, runtime, member)


def _pretrained(member: MemberSpec, options: dict[str, Any]) -> Any:
    """The model with the weights of its tag."""
    name = f"{member.model}.{member.weights}"
    declared = timm.get_pretrained_cfg(name)
    if declared.hf_hub_id and not declared.hf_hub_filename:
        weights = HubWeights(declared.hf_hub_id, ("model.safetensors", "pytorch_model.bin"), f' and model = "{name}"')
        if (file := weights.cached()) is not None:
            # custom_load tells of other formats at the weights' first home; the hub has none of them.
            overlay = {"file": str(file), "custom_load": False}
            return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        weights.check_reachable(member)
    with hub_unreachable(member):
        return timm.create_model(name, pretrained=True, **options)
