"""The large built-in ensembles: names and licences that the libraries know, networks that take their input.

Weights stay away.  Networks are built by the code that loads them, on torch's device ``meta``, which takes no memory.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import open_clip
import pytest
import timm
import torch

from cbir.core.ensemble import MemberSpec, has_text_tower, load_ensemble
from cbir.core.ensemble.backends import open_clip as open_clip_backend
from cbir.core.ensemble.backends.timm import build_network
from cbir.core.ensemble.backends.weights import resolve_input
from cbir.core.ensemble.runtime.input_format import InputFormat

#: What may be used commercially without a licence of its own to study.
FREE = {"apache-2.0", "mit", "bsd-3-clause"}
FAMILIES = ["clip", "vit-clip", "convnext", "resnetv2", "glrtml"]
#: Repositories of open_clip's tags whose model cards name Apache 2.0; open_clip does not tell licences.
APACHE = {"timm/PE-Core-B-16", "timm/PE-Core-L-14-336"}
#: (ensemble, member) -> side of the input in pixels, length of an embedding.
SHAPES = {
    ("standard", "clip"): (224, 1024),
    ("standard", "vit-clip"): (256, 1024),
    ("standard", "convnext"): (256, 1024),
    ("standard", "resnetv2"): (224, 2048),
    ("standard", "glrtml"): (224, 768),
    ("large", "clip"): (336, 1024),
    ("large", "vit-clip"): (384, 1536),
    ("large", "convnext"): (256, 3072),
    ("large", "resnetv2"): (224, 4096),
    ("large", "glrtml"): (224, 1024),
}


def member_of(ensemble: str, name: str) -> MemberSpec:
    return next(member for member in load_ensemble(ensemble).members if member.name == name)


@pytest.mark.parametrize("ensemble", ["standard", "large"])
def test_the_five_families_are_there_and_one_can_be_asked_in_words(ensemble: str) -> None:
    members = load_ensemble(ensemble).members
    assert [member.name for member in members] == FAMILIES
    assert [member.name for member in members if has_text_tower(member)] == ["clip"]
    assert members[-1].metric == "glrt"


@pytest.mark.parametrize("where", SHAPES, ids="-".join)
def test_weights_have_names_that_the_libraries_know_and_free_licences(where: tuple[str, str]) -> None:
    member = member_of(*where)
    if member.backend == "open_clip":
        declared = open_clip.get_pretrained_cfg(member.model, member.weights)
        assert declared["hf_hub"].rstrip("/") in APACHE
    else:
        assert timm.get_pretrained_cfg(f"{member.model}.{member.weights}", allow_unregistered=False).license in FREE


@pytest.mark.parametrize("where", SHAPES, ids="-".join)
def test_networks_take_their_input(where: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    member = member_of(*where)
    if member.backend == "open_clip":
        monkeypatch.setattr(open_clip, "create_model", functools.partial(open_clip.create_model, device="meta"))
        with torch.device("meta"):
            model = open_clip_backend._create(replace(member, weights=None))
        declared = open_clip.get_model_preprocess_cfg(model)
        size = declared["size"]
        side = size if isinstance(size, int) else size[0]
        network = model.visual
        form = resolve_input(member, InputFormat(side, declared["mean"], declared["std"], declared["interpolation"]))
        assert open_clip.get_tokenizer(member.model)(["a photo"]).shape == (1, model.context_length)
    else:
        # The tag behind the model's name tells the input that its weights were trained for.
        told = replace(member, model=f"{member.model}.{member.weights}", weights=None)
        with torch.device("meta"):
            network, form = build_network(told)
    side, length = SHAPES[where]
    assert form.size == side
    with torch.inference_mode():
        assert network.eval()(torch.empty(2, 3, side, side, device="meta")).shape == (2, length)
