"""Backend open_clip: image and text towers of CLIP, SigLIP and similar models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray

from cbir.core.ensemble.backends.hub import HubWeights
from cbir.core.ensemble.backends.weights import (
    hub_unreachable,
    load_state,
    resolve_input,
    seeded,
    tokenizer_unreachable,
)
from cbir.core.ensemble.embedder import Embedder
from cbir.core.ensemble.runtime.choice import choose_runtime
from cbir.core.ensemble.runtime.input_format import InputFormat
from cbir.core.ensemble.runtime.run import run_network
from cbir.core.ensemble.spec import MemberSpec
from cbir.core.ensemble.text_tower import TextEmbedder
from cbir.core.errors import EnsembleError

__all__ = ["check_text", "load", "load_text"]

#: Texts in one forward pass.
_BATCH = 64
#: File names that open_clip tries in a repository where none is given.
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def load(member: MemberSpec, device: str, runtime: str, precision: str = "auto") -> Embedder:
    """Build the image tower of ``member.model`` and put it onto a runtime.

    Weights: a ``.safetensors`` file of the whole model in open_clip's names, a pretrained tag, or none.

    Raises:
        EnsembleError: Unknown model or tag, weights of another architecture, or a hub that cannot be reached.
    """
    model = _create(member)
    declared = open_clip.get_model_preprocess_cfg(model)
    size = declared["size"]
    form = InputFormat(
        size if isinstance(size, int) else size[0], declared["mean"], declared["std"], declared["interpolation"]
    )
    return run_network(model.visual, resolve_input(member, form), device, runtime, member, precision)


def load_text(member: MemberSpec, device: str) -> TextEmbedder:
    """Build the text tower of ``member.model``, with the weights of its image tower, in torch.

    Raises:
        EnsembleError: As for :func:`load`, or the tokenizer is neither part of open_clip nor cached nor reachable.
    """
    return _TextTower(_create(member), _tokenizer(member), choose_runtime(device, "torch"))


def check_text(member: MemberSpec) -> None:
    """Make sure that the text tower could be loaded, without its weights, which are those of the image tower.

    Raises:
        EnsembleError: Unknown model, or a tokenizer that cannot be had.
    """
    _check_known(member)
    _tokenizer(member)


def _tokenizer(member: MemberSpec) -> Any:
    with tokenizer_unreachable(member):
        return open_clip.get_tokenizer(member.model)


def _check_known(member: MemberSpec) -> None:
    if member.model not in open_clip.list_models():
        raise EnsembleError(
            f"open_clip has no model {member.model!r} (member {member.name!r}): see open_clip.list_models()",
            reason="MODEL_UNKNOWN",
        )


def _create(member: MemberSpec) -> Any:
    """The whole model, both towers, with the member's weights."""
    _check_known(member)
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
        return _pretrained(member, options)
    with seeded():
        model = open_clip.create_model(member.model, **options)
    if file:
        load_state(model, file, member)
    return model


def _pretrained(member: MemberSpec, options: dict[str, Any]) -> Any:
    """The model with the weights of the member's tag."""
    declared = open_clip.get_pretrained_cfg(member.model, member.weights)
    repo, _, name = declared.get("hf_hub", "").rpartition("/")
    if repo:
        ours = {key: declared[key] for key in ("mean", "std", "interpolation")}
        usual = open_clip.transform.PreprocessCfg()
        differs = any(ours[key] != getattr(usual, key) for key in ours)
        files = (f"{name.rpartition('.')[0]}.safetensors", name) if name else _HUB_FILES
        weights = HubWeights(repo, files, f" and input = {_toml(ours)}" if differs else "")
        if (file := weights.cached()) is not None:
            return open_clip.create_model(member.model, pretrained=str(file), force_preprocess_cfg=ours, **options)
        weights.check_reachable(member)
    with hub_unreachable(member):
        return open_clip.create_model(member.model, pretrained=member.weights, **options)


def _toml(table: dict[str, Any]) -> str:
    """An inline table of TOML."""
    return "{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in table.items()) + " }"


class _TextTower:
    """An open_clip model without its image tower."""

    def __init__(self, model: Any, tokenizer: Any, runtime: str) -> None:
        model.visual = torch.nn.Identity()
        self._device = torch.device("cuda" if runtime == "torch-cuda" else "cpu")
        self._model, self._tokenizer = model.eval().to(self._device), tokenizer
        self.logit_scale = float(model.logit_scale.detach().exp())
        self.dim = self.embed_text(["a photo"]).shape[1]

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See :class:`cbir.core.ensemble.text_tower.TextEmbedder`; longer texts are cut to the tokenizer's context."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                tokens = self._tokenizer(list(texts[start : start + _BATCH])).to(self._device)
                parts.append(self._model.encode_text(tokens, normalize=True).float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)
