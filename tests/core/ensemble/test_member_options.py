"""No option, name or weights of a member makes a library read a file, fetch an address or run code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from cbir.core.ensemble import BUILT_IN, EnsembleSpec, MemberSpec, load_embedder, load_ensemble
from cbir.core.ensemble.member_options import OPTIONS, option_problem
from cbir.core.errors import CbirError, EnsembleError

#: What factories of the backends take besides the architecture.
DANGEROUS = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_image", "pretrained_image_path",
    "pretrained_text", "pretrained_text_path", "pretrained_hf", "pretrained_strict", "checkpoint_path", "cache_dir",
    "weights_only", "load_weights", "weights", "weights_backbone", "scriptable", "exportable", "jit", "device", "cfg",
    "block_args", "custom_load", "model_args", "force_preprocess_cfg", "hf_hub_id", "trust_remote_code", "progress",
    "__class__", "",
)  # fmt: skip


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("backend", sorted(OPTIONS))
def test_what_is_no_part_of_the_architecture_is_refused(backend: str) -> None:
    for name in DANGEROUS:
        assert name not in OPTIONS[backend]
        with pytest.raises(EnsembleError, match="is not given") as caught:
            MemberSpec("m", backend, "x", options={name: "x"})
        assert caught.value.reason == "MEMBER_REFUSED"
    assert not any(name.startswith(("pretrained", "weights", "checkpoint")) for name in OPTIONS[backend])


@pytest.mark.parametrize(
    "value",
    [
        "/etc/passwd", "../x", "x.pth", "https://host", "file:x", "a\\b", "hf-hub:a/b", "torch.nn.ReLU", "x" * 65,
        {"a": 1}, ["ok", {"a": 1}], [[["deep"]]], [0] * 65, 65_537, -65_537, 10**400, float("nan"), float("inf"),
        b"bytes", object(), Path("x"),
    ],
)  # fmt: skip
def test_values_that_could_name_a_file_or_fill_the_memory_are_refused(value: object) -> None:
    assert "act_layer = " in str(option_problem("timm", {"act_layer": value}))
    with pytest.raises(EnsembleError):
        MemberSpec("m", "timm", "x", options={"act_layer": value})


def test_architectures_get_through() -> None:
    for ensemble in BUILT_IN:
        assert load_ensemble(ensemble).members
    options = {"act_layer": "gelu_tanh", "depths": [1, 2], "num_heads": ((1, 2), (3, 4)), "qkv_bias": False, "dim": 1.5}
    assert option_problem("timm", options) is None
    assert option_problem("openvino", {"output": "Mobilenet/Logits/Reshape:0"}) is None
    assert option_problem("openvino", {"output": 1}) is None


@pytest.mark.parametrize(
    "weights",
    [
        "w.pth", "w.PT", "pytorch_model.bin", "hf-hub:a/b", "https://host/x", "../x", "/etc/passwd", "", "a b", ".x",
        7, "x\n", "x" * 200,
    ],
)  # fmt: skip
def test_weights_that_may_hold_code_or_lie_anywhere_are_refused(weights: Any) -> None:
    with pytest.raises(EnsembleError, match="neither a tag of a backend nor a file of numbers"):
        MemberSpec("m", "timm", "test_resnet", weights)


@pytest.mark.parametrize("name", ["..", ".", "../m", "a/b", "a\\b", "", "-m", "m\n", "m\0", 5, "x" * 65])
def test_names_that_leave_their_folder_are_refused(name: Any) -> None:
    with pytest.raises(EnsembleError, match="is no name"):
        MemberSpec(name, "timm", "test_resnet")


@pytest.mark.parametrize("weights", ["package:../../../x.safetensors", "package:/x.safetensors", "package:a/../b.onnx"])
def test_weights_of_the_package_stay_in_it(weights: str) -> None:
    data = EnsembleSpec("e", (MemberSpec("m", "timm", "test_resnet"),)).to_json()
    data["members"][0]["weights"] = weights
    with pytest.raises((ValueError, CbirError)):
        EnsembleSpec.from_json(data)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    """The attack that worked: an ensemble whose options hand a pickle to the library's own loader."""
    proof, bait = tmp_path / "proof", tmp_path / "bait.pth"
    torch.save({"state_dict": Payload(proof)}, bait)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(bait, weights_only=True)
    torch.load(bait, weights_only=False)  # what the attack wants
    assert proof.exists()
    proof.unlink()
    attacks: list[dict[str, Any]] = [
        {"options": {"pretrained": str(bait), "weights_only": False}, "backend": "open_clip", "model": "RN50"},
        {"options": {"checkpoint_path": str(bait)}},
        {"options": {"pretrained": True, "pretrained_cfg_overlay": {"file": str(bait)}}},
        {"options": {"pretrained_image_path": str(bait)}, "backend": "open_clip", "model": "RN50"},
        {"weights": str(bait)},
        {"model": f"local-dir:{tmp_path}"},
        {"model": f"local-dir:{tmp_path}", "backend": "open_clip"},
        {"model": str(bait), "backend": "torchvision"},
    ]
    for attack in attacks:
        with pytest.raises(EnsembleError):
            load_embedder(
                MemberSpec(**{"name": "m", "backend": "timm", "model": "test_resnet", **attack}), "cpu", "torch"
            )
        data = MemberSpec("m", "timm", "test_resnet").to_json() | attack
        with pytest.raises(EnsembleError):
            load_embedder(MemberSpec.from_json(data), "cpu", "torch")
    assert not proof.exists()
