"""Networks of timm, as feature extractors (pooled, before the classifier)."""

from __future__ import annotations

import timm

from cbir.core.embedder import Embedder
from cbir.core.embedders.weights import hub_unreachable, load_state, resolve_input, seeded
from cbir.core.ensemble import MemberSpec
from cbir.core.errors import EnsembleError
from cbir.core.runtime import InputFormat, run

__all__ = ["load"]


def load(member: MemberSpec, device: str, runtime: str) -> Embedder:
    """Build ``member.model`` with ``member.options`` and put it onto a runtime.

    Weights: a ``.safetensors`` file in timm's names (a classifier in it is dropped), a pretrained tag, or none.

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
        with hub_unreachable(member):
            model = timm.create_model(f"{member.model}.{member.weights}", pretrained=True, **options)
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
