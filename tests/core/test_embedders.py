"""Embedders: every backend loads, agrees with eager float32, and refuses what does not fit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from images import pattern
from safetensors.torch import save_file

from cbir.core.crop import Box, Crop
from cbir.core.embedder import load_embedder, prepare
from cbir.core.ensemble import InputSpec, MemberSpec, member_fingerprint
from cbir.core.errors import ConfigurationError, EnsembleError
from cbir.core.runtime import import_openvino

SMALL = InputSpec(size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bilinear")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CBIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def member(**changes: object) -> MemberSpec:
    values = {"name": "m", "backend": "timm", "model": "test_resnet", "input": SMALL}
    return MemberSpec(**{**values, **changes})  # type: ignore[arg-type]


def batch(count: int = 3) -> np.ndarray:
    box = Box(0, 0, 48, 48)
    return np.stack([prepare(np.asarray(pattern(i % 4, i)), box, 32, "bilinear") for i in range(count)])


def eager(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        y = torch.nn.functional.normalize(model.eval()((x - 0.5) / 0.25).flatten(1), dim=1)
    return y.numpy()


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_timm_file_agrees_with_eager_float32(tmp_path: Path, runtime: str) -> None:
    model = timm.create_model("test_resnet", num_classes=7)
    file = tmp_path / "w.safetensors"
    save_file({k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}, file)
    embedder = load_embedder(member(weights=str(file)), "cpu", runtime)
    model.load_state_dict({k: v.half().float() if v.is_floating_point() else v for k, v in model.state_dict().items()})
    model.reset_classifier(0)
    ours = embedder.embed(batch())
    assert ours.shape == (3, embedder.dim)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-4)
    assert (ours * eager(model, batch())).sum(axis=1).min() > 0.999
    # One image alone gets the embedding it gets in a batch.
    assert (embedder.embed(batch()[1:2])[0] * ours[1]).sum() > 0.9999


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_a_head_of_its_own_is_the_embedding(tmp_path: Path, runtime: str) -> None:
    model = timm.create_model("test_resnet", num_classes=7)
    file = tmp_path / "w.safetensors"
    save_file(model.state_dict(), file)
    embedder = load_embedder(member(weights=str(file), options={"num_classes": 7}), "cpu", runtime)
    assert embedder.dim == 7
    assert (embedder.embed(batch()) * eager(model, batch())).sum(axis=1).min() > 0.999
    with pytest.raises(EnsembleError, match="2 of another shape"):
        load_embedder(member(weights=str(file), options={"num_classes": 9}), "cpu", "torch")
    model.reset_classifier(0)
    save_file(model.state_dict(), file)
    with pytest.raises(EnsembleError, match="2 parameters missing"):
        load_embedder(member(weights=str(file), options={"num_classes": 7}), "cpu", "torch")


def test_a_tag_has_the_classes_it_has() -> None:
    with pytest.raises(EnsembleError, match="asks for 7 outputs, but its weights 'a1_in1k' have 1000 classes"):
        load_embedder(member(model="resnet18", weights="a1_in1k", options={"num_classes": 7}), "cpu", "torch")


def test_converted_networks_are_kept_and_used_again(tmp_path: Path) -> None:
    first = load_embedder(member(), "cpu", "openvino")
    kept = list((tmp_path / "cache").rglob("model.xml"))
    assert len(kept) == 1
    second = load_embedder(member(), "cpu", "openvino")
    np.testing.assert_allclose(first.embed(batch()), second.embed(batch()), atol=1e-5)
    kept[0].write_text("damaged")
    third = load_embedder(member(), "cpu", "openvino")
    np.testing.assert_allclose(first.embed(batch()), third.embed(batch()), atol=1e-5)


def test_random_weights_are_the_same_at_every_start() -> None:
    a, b = (load_embedder(member(), "cpu", "torch").embed(batch()) for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_torchvision_and_open_clip() -> None:
    vision = load_embedder(member(backend="torchvision", model="mobilenet_v3_small"), "cpu", "torch")
    assert vision.dim == 1024
    assert vision.embed(batch()).shape == (3, 1024)
    clip = load_embedder(member(backend="open_clip", model="RN50", input=InputSpec()), "cpu", "torch")
    assert (clip.size, clip.dim) == (224, 1024)


def test_openvino_takes_onnx_and_ir(tmp_path: Path) -> None:
    ov = import_openvino()
    ops = ov.opset13

    # The mean of each channel of a normalised image: a model small enough to check by hand.
    image = ops.parameter([1, 3, 32, 32], np.float32, "image")
    mean = ops.reduce_mean(image, np.array([2, 3]), keep_dims=False)
    ov.save_model(ov.Model([mean.output(0)], [image], "means"), tmp_path / "m.xml", compress_to_fp16=False)
    embedder = load_embedder(member(backend="openvino", model="means", weights=str(tmp_path / "m.xml")))
    expected = batch().reshape(3, -1, 3).mean(axis=1) / 255
    expected = (expected - 0.5) / 0.25
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embedder.embed(batch()), expected, atol=1e-3)
    assert embedder.runtime == "openvino"


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"backend": "keras"}, "BACKEND_UNKNOWN", "known are timm"),
        ({"model": "resnet_of_dreams"}, "MODEL_UNKNOWN", "timm has no model"),
        ({"backend": "open_clip", "model": "ViT-X"}, "MODEL_UNKNOWN", "open_clip has no model"),
        ({"backend": "torchvision", "model": "x"}, "MODEL_UNKNOWN", "torchvision has no"),
        ({"backend": "open_clip", "model": "RN50", "weights": "nope"}, "WEIGHTS_UNKNOWN", "known are openai"),
        ({"backend": "torchvision", "model": "resnet18", "weights": "nope"}, "WEIGHTS_UNKNOWN", "IMAGENET1K_V1"),
        ({"options": {"colour": "blue"}}, "MODEL_UNUSABLE", "check model, options and weights"),
        ({"backend": "openvino", "weights": None}, "WEIGHTS_MISMATCH", ".onnx"),
    ],
)
def test_what_cannot_be_loaded_is_named(changes: dict[str, object], reason: str, words: str) -> None:
    with pytest.raises(EnsembleError) as caught:
        load_embedder(member(**changes), "cpu", "torch")
    assert caught.value.reason == reason
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), file)
    with pytest.raises(EnsembleError, match="does not fit 'test_resnet'"):
        load_embedder(member(weights=str(file)), "cpu", "torch")
    file.write_bytes(b"\x00" * 50)
    with pytest.raises(EnsembleError, match="no readable safetensors file"):
        load_embedder(member(weights=str(file)), "cpu", "torch")


def test_a_failed_download_says_which_file_goes_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr("torchvision.models.get_model", refuse)
    with pytest.raises(EnsembleError) as caught:
        load_embedder(member(backend="torchvision", model="resnet18", weights="IMAGENET1K_V1"), "cpu", "torch")
    assert caught.value.reason == "WEIGHTS_UNREACHABLE"
    assert "connection refused" in str(caught.value)
    assert 'weights = "path/to/file.safetensors"' in str(caught.value)


def test_devices_that_are_not_there() -> None:
    with pytest.raises(ConfigurationError, match="drop --device cuda"):
        load_embedder(member(), "cuda", "openvino")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="no CUDA GPU"):
            load_embedder(member(), "cuda", "torch")


def test_a_signal_after_many_networks_is_survived() -> None:
    # OpenVINO's plug-in moves the signal stack of the thread; see cbir.core.runtime.openvino_core.
    script = """
import gc, os, signal, sys
from cbir.core.embedder import load_embedder
from cbir.core.ensemble import InputSpec, MemberSpec
for _ in range(3):
    kept = load_embedder(MemberSpec("m", "timm", "test_resnet", input=InputSpec(size=32)), "cpu", "openvino")
del kept
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
os.kill(os.getpid(), signal.SIGTERM)
signal.pause()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    assert done.returncode == 7, done.stderr.decode()[-500:]


def test_a_mirrored_member_does_not_tell_left_from_right() -> None:
    member = MemberSpec("m", "timm", "test_resnet", None, {}, InputSpec(64))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    plain = load_embedder(member, "cpu", "torch")
    both = load_embedder(replace(member, mirror=True), "cpu", "torch")
    mirrored = np.ascontiguousarray(pixels[:, :, ::-1])
    want = plain.embed(pixels) + plain.embed(mirrored)
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(both.embed(pixels), want, atol=1e-5)
    np.testing.assert_allclose(both.embed(mirrored), both.embed(pixels), atol=1e-5)
    assert abs(plain.embed(pixels) - plain.embed(mirrored)).max() > 1e-4
    assert member_fingerprint(member, Crop.NONE) != member_fingerprint(replace(member, mirror=True), Crop.NONE)
