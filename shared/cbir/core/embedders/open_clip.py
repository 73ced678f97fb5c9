"""Image towers of open_clip (CLIP, ViT-CLIP, SigLIP and their kin)."""

from __future__ import annotations

import open_clip

from cbir.core.embedder import Embedder
from cbir.core.embedders.weights import hub_unreachable, load_state, resolve_input, seeded
from cbir.core.ensemble import MemberSpec
from cbir.core.errors import EnsembleError
from cbir.core.runtime import InputFormat, run

__all__ = ["load"]


def load(member: MemberSpec, device: str, runtime: str) -> Embedder:
    """Build the image tower of ``member.model`` and put it onto a runtime.

    Weights: a ``.safetensors`` file of the whole model in open_clip's names, a pretrained tag, or none.

    Raises:
        EnsembleError: Unknown model or tag, weights of another architecture, or a hub that cannot be reached.
    """
    if member.model not in open_clip.list_models():
        raise EnsembleError(
            f"open_clip has no model {member.model!r} (member {member.name!r}): see open_clip.list_models()",
            reason="MODEL_UNKNOWN",
        )
    options = dict(member.options)
    file = member.weights_file
    if member.weights and not file:
        tags = open_clip.list_pretrained_tags_by_model(member.model)
        if member.weights not in tags:
            raise EnsembleError(
                f"open_clip has no weights {member.weights!r} for {member.model!r} (member {member.name!r}); "
                f"known are {', '.join(tags) or 'none'}",
                reason="WEIGHTS_UNKNOWN",
            )
        with hub_unreachable(member):
            model = open_clip.create_model(member.model, pretrained=member.weights, **options)
    else:
        with seeded():
            model = open_clip.create_model(member.model, **options)
        if file:
            load_state(model, file, member)
    declared = open_clip.get_model_preprocess_cfg(model)
    size = declared["size"]
    form = InputFormat(
        size if isinstance(size, int) else size[0], declared["mean"], declared["std"], declared["interpolation"]
    )
    return run(model.visual, resolve_input(member, form), device, runtime, member)
