"""Embedders: every backend loads, agrees with eager float32, and refuses what does not fit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from emulated_bf16 import rounded
from images import pattern
from precision import UNITS, f16, f32, least_cosine, of_components
from safetensors.torch import save_file

from cbir.core.ensemble import (
    InputFormat,
    InputSpec,
    MemberSpec,
    choose_runtime,
    embed_all,
    load_embedder,
    member_fingerprint,
)
from cbir.core.ensemble.embedder import AsyncEmbedder, MirrorEmbedder
from cbir.core.ensemble.runtime.agreement import AGREEMENT, disagreement, probe
from cbir.core.ensemble.runtime.choice import FORCED, Precision, choose_precisions
from cbir.core.ensemble.runtime.cuda import CudaEmbedder, bucket
from cbir.core.ensemble.runtime.eager import TorchEmbedder
from cbir.core.ensemble.runtime.openvino import OpenVinoEmbedder, import_openvino, openvino_core
from cbir.core.ensemble.runtime.run import run_on_gpu
from cbir.core.errors import ConfigurationError, EnsembleError
from cbir.core.images import Box, Crop, prepare
from cbir.core.machine import Threads, share_out, threads

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
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=f32(16))
    np.testing.assert_allclose(ours, eager(model, batch()), atol=of_components(embedder.precision))
    assert (ours * eager(model, batch())).sum(axis=1).min() > least_cosine(embedder.precision)
    # One image alone gets the embedding it gets in a batch.
    assert (embedder.embed(batch()[1:2])[0] * ours[1]).sum() > least_cosine(embedder.precision)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_a_head_of_its_own_is_the_embedding(tmp_path: Path, runtime: str) -> None:
    model = timm.create_model("test_resnet", num_classes=7)
    file = tmp_path / "w.safetensors"
    save_file(model.state_dict(), file)
    embedder = load_embedder(member(weights=str(file), options={"num_classes": 7}), "cpu", runtime)
    assert embedder.dim == 7
    assert (embedder.embed(batch()) * eager(model, batch())).sum(axis=1).min() > least_cosine(embedder.precision)
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
    np.testing.assert_allclose(first.embed(batch()), second.embed(batch()), atol=of_components(first.precision))
    kept[0].write_text("damaged")
    third = load_embedder(member(), "cpu", "openvino")
    np.testing.assert_allclose(first.embed(batch()), third.embed(batch()), atol=of_components(first.precision))


def test_a_kept_network_that_gives_other_embeddings_is_converted_again(tmp_path: Path) -> None:
    first = load_embedder(member(), "cpu", "openvino")
    kept = next((tmp_path / "cache").rglob("reference.npy"))
    reference = np.load(kept)
    np.testing.assert_allclose(first.embed(probe(32)), reference, atol=of_components(first.precision))
    # As if another network lay beside what eager float32 said of this one.
    np.save(kept, reference[::-1, ::-1])
    second = load_embedder(member(), "cpu", "openvino")
    np.testing.assert_allclose(first.embed(batch()), second.embed(batch()), atol=of_components(first.precision))
    np.testing.assert_allclose(np.load(kept), reference, atol=f32(16))
    assert [path.name for path in kept.parent.parent.iterdir()] == [kept.parent.name]


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
    np.testing.assert_allclose(embedder.embed(batch()), expected, atol=of_components(embedder.precision))
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
        ({"options": {"kernel_sizes": 3}}, "MODEL_UNUSABLE", "check model, options and weights"),
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

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
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
    # OpenVINO's plug-in moves the signal stack of the thread; see cbir.core.ensemble.runtime.openvino_core.
    script = """
import gc, os, signal, sys
from cbir.core.ensemble import load_embedder
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
    np.testing.assert_allclose(both.embed(pixels), want, atol=of_components(both.precision))
    np.testing.assert_allclose(both.embed(mirrored), both.embed(pixels), atol=of_components(both.precision))
    assert abs(plain.embed(pixels) - plain.embed(mirrored)).max() > 8 * of_components(both.precision)
    assert member_fingerprint(member, Crop.NONE) != member_fingerprint(replace(member, mirror=True), Crop.NONE)


def test_the_pictures_for_the_comparison_are_pictures() -> None:
    for size in (8, 30, 96):
        pictures = probe(size)
        assert pictures.shape == (2, size, size, 3)
        assert pictures.dtype == np.uint8
    # Sky above earth, and smooth beside textured; night is darker than day.
    day, night = probe(96).astype(int)
    assert day[:20, :, 2].mean() > day[-20:, :, 2].mean() + 50
    assert np.abs(np.diff(day[:8], axis=1)).mean() < 1 < np.abs(np.diff(day[-20:], axis=1)).mean()
    assert night.mean() < day.mean() / 2


def test_agreement_is_a_cosine_and_nothing_agrees_with_no_number() -> None:
    reference = np.array([[1, 0], [0, 1]], np.float32)
    assert disagreement(reference, reference) is None
    slanted = np.array([[1, 0], [0.6, 0.8]], np.float32)
    assert disagreement(slanted, reference) == "cosine 0.8000 to eager float32, less than 0.999"
    assert "cosine nan" in str(disagreement(reference * np.nan, reference))
    assert disagreement(reference[:, :1], reference) == "embeddings of 1 components where eager float32 gives 2"


def test_precisions_that_are_not_there_are_named() -> None:
    assert choose_precisions("torch-cpu", "auto") == (Precision.F32,)
    with pytest.raises(ConfigurationError, match="torch-cpu has no bf16 arithmetic on this machine, only f32"):
        load_embedder(member(), "cpu", "torch", "bf16")
    with pytest.raises(ConfigurationError, match="must be one of auto, f32, bf16, f16"):
        load_embedder(member(), "cpu", "torch", "f8")
    assert load_embedder(member(), "cpu", "openvino", "f32").precision == "f32"


def test_what_openvino_computes_in_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORCED, raising=False)
    there = choose_precisions("openvino", "auto")
    assert there[-1] is Precision.F32
    monkeypatch.setenv(FORCED, "f32")
    assert choose_precisions("openvino", "auto") == (Precision.F32,)
    assert load_embedder(member(), "cpu", "openvino").precision == "f32"
    # It is of OpenVINO alone, and an option has the last word.
    monkeypatch.setenv(FORCED, "bf16")
    assert choose_precisions("torch-cpu", "auto") == (Precision.F32,)
    assert choose_precisions("openvino", "f32") == (Precision.F32,)
    if Precision.BF16 in there:
        assert choose_precisions("openvino", "auto") == (Precision.BF16,)
    else:
        with pytest.raises(ConfigurationError, match=rf"has no bf16 arithmetic on this machine.*{FORCED} unset"):
            choose_precisions("openvino", "auto")
    monkeypatch.setenv(FORCED, "int8")
    with pytest.raises(ConfigurationError, match=f"{FORCED} is 'int8'; it must be one of f32, bf16, f16"):
        choose_precisions("openvino", "auto")


def test_auto_is_what_the_processor_has(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("precision"):
        pytest.skip("a precision is forced")
    capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    wanted = choose_precisions("openvino", "auto")
    assert wanted[0] is (Precision.BF16 if "BF16" in capabilities else Precision.F32)


def test_emulated_bf16_rounds_the_factors_of_products() -> None:
    openvino = import_openvino()
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 64), (64, 3)))
    ops = openvino.opset13
    given = ops.parameter(left.shape, np.float32)
    model = openvino.Model([ops.matmul(given, ops.constant(right), False, False).output(0)], [given], "product")
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    found = openvino_core().compile_model(rounded(model), "CPU", settings)(left)[0]
    halves = [torch.from_numpy(factor).bfloat16().float() for factor in (left, right)]
    np.testing.assert_allclose(found, (halves[0] @ halves[1]).numpy(), atol=f32(16 * 64))
    whole = openvino_core().compile_model(model, "CPU", settings)(left)[0]
    assert 0.1 < np.abs(found - whole).max() / UNITS["bf16"] < 8, "the model itself stays as it was"


FORM = InputFormat(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear")


def small_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=0).eval()


@pytest.mark.parametrize(("precision", "autocast"), [("f32", False), ("bf16", False), ("bf16", True)])
def test_what_runs_on_a_gpu_gives_the_embeddings_of_eager_float32(
    precision: str, autocast: bool, caplog: pytest.LogCaptureFixture
) -> None:
    module = small_network()
    place = "cuda" if torch.cuda.is_available() else "cpu"
    embedder = CudaEmbedder(module, FORM, Precision(precision), autocast=autocast, place=place)
    if place == "cpu":
        assert not embedder.graphs
        assert "no CUDA graphs for a member" in caplog.text
    assert (embedder.runtime, embedder.precision, embedder.dim) == ("torch-cuda", precision, 96)
    # The module itself is left as it was.
    assert next(module.parameters()).dtype == torch.float32
    for count in (3, 1, 4, 70):
        images = batch(count)
        ours = embedder.embed(images)
        assert (ours.shape, ours.dtype) == ((count, 96), np.float32)
        assert (ours * eager(module, images)).sum(axis=1).min() > AGREEMENT
    # A result outlives the next batch, which uses the same buffers.
    first = embedder.embed(batch(4))
    kept = first.copy()
    embedder.embed(batch(4)[::-1])
    np.testing.assert_array_equal(first, kept)


def test_batches_on_a_gpu_are_padded_to_powers_of_two() -> None:
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 8, 9, 33, 64)] == [1, 2, 4, 4, 8, 8, 16, 64, 64]


class Fussy(torch.nn.Module):
    """Refuses half precision as an operation of torch would, or loses its precision in it."""

    def __init__(self, refuses: bool) -> None:
        super().__init__()
        self.linear, self.refuses = torch.nn.Linear(3 * 32 * 32, 8), refuses

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.refuses and images.dtype != torch.float32:
            raise RuntimeError("expected scalar type Float but found BFloat16")
        features = self.linear(images.flatten(1))
        return features if features.dtype == torch.float32 else torch.cat([features[:, 1:], features[:, :1]], dim=1)


def test_a_gpu_falls_back_to_what_agrees_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    module = Fussy(refuses=True)
    reference = TorchEmbedder(module, FORM).embed(probe(32))
    embedder = run_on_gpu(module, FORM, (Precision.BF16, Precision.F32), reference, "cpu")
    assert embedder.precision == "f32"
    assert "not run in bf16 on the GPU: expected scalar type Float but found BFloat16" in caplog.text
    assert "not run in bf16, by torch.autocast on the GPU: cosine" in caplog.text
    with pytest.raises(EnsembleError, match=r"cannot run this member faithfully in bf16 \(cosine") as caught:
        run_on_gpu(Fussy(refuses=False), FORM, (Precision.BF16,), reference, "cpu")
    assert caught.value.reason == "RUNTIME_DISAGREES"


class Slow:
    """An embedder of a runtime that can start batches; it notes what happens to it."""

    runtime, precision, interpolation, dim, size = "torch-cuda", "bf16", "bilinear", 2, 8

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    def begin(self, images: np.ndarray) -> Slow:
        self.events.append(f"{self.name} begins {len(images)}")
        self.images = images
        return self

    def result(self) -> np.ndarray:
        self.events.append(f"{self.name} ends")
        return self.images.reshape(len(self.images), -1)[:, :2].astype(np.float32)

    def embed(self, images: np.ndarray) -> np.ndarray:
        return self.begin(images).result()


def test_all_members_are_started_before_any_is_waited_for() -> None:
    events: list[str] = []
    members = {"a": Slow("a", events), "b": Slow("b", events)}
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    found = embed_all(members, {(8, "bilinear"): images})
    assert events == ["a begins 2", "b begins 2", "a ends", "b ends"]
    np.testing.assert_array_equal(found["b"], [[0, 1], [192, 193]])


def test_two_members_at_a_time_share_a_cpu() -> None:
    events: list[str] = []
    members = {name: Slow(name, events) for name in "abc"}
    for slow in members.values():
        slow.runtime = "openvino"
    embed_all(members, {(8, "bilinear"): np.zeros((1, 8, 8, 3), np.uint8)})
    assert events == ["a begins 1", "b begins 1", "a ends", "c begins 1", "b ends", "c ends"]


def test_cores_share_a_batch_out_as_one_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbir.core.ensemble.runtime.openvino.threads", lambda: Threads(inference=2))
    shared = load_embedder(member(), "cpu", "openvino")
    monkeypatch.setattr("cbir.core.ensemble.runtime.openvino._MAX_DOUBLED_BYTES", 0)
    large = load_embedder(member(), "cpu", "openvino")
    assert isinstance(shared, OpenVinoEmbedder)
    assert isinstance(large, OpenVinoEmbedder)
    assert (len(shared._alone), len(large._alone)) == (2, 0)
    for count in (1, 3, 4, 7):
        alike = of_components(shared.precision)
        np.testing.assert_allclose(shared.embed(batch(count)), large.embed(batch(count)), atol=alike)
    # A batch that was started and given up stops no other.
    _begun = shared.begin(batch(7))
    np.testing.assert_allclose(shared.embed(batch(4)), large.embed(batch(4)), atol=alike)


def test_embedders_that_cannot_start_are_asked_in_turn() -> None:
    plain, started = load_embedder(member(), "cpu", "torch"), load_embedder(member(mirror=True), "cpu", "openvino")
    assert not isinstance(plain, AsyncEmbedder)
    assert isinstance(started, MirrorEmbedder)
    assert isinstance(load_embedder(member(), "cpu", "openvino"), OpenVinoEmbedder)
    found = embed_all({"plain": plain, "started": started}, {(32, "bilinear"): batch()})
    np.testing.assert_array_equal(found["plain"], plain.embed(batch()))
    np.testing.assert_array_equal(found["started"], started.embed(batch()))


def test_eight_bits_are_calibrated_once_and_stay_near_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf")
    # However slow they are here, and however busy the machine is while they are compared.
    monkeypatch.setattr("cbir.core.ensemble.runtime.quantisation.LEAST_GAIN", 0.0)
    asked: list[tuple[int, str]] = []

    def pictures(size: int, interpolation: str) -> np.ndarray:
        asked.append((size, interpolation))
        return batch(48)

    plain = load_embedder(member(), "cpu", "openvino", "f32")
    small = load_embedder(member(), "cpu", "auto", "int8", pictures)
    assert (small.precision, asked) == ("int8", [(32, "bilinear")])
    cosines = (plain.embed(batch()) * small.embed(batch())).sum(axis=1)
    assert 0.97 < cosines.mean() < 0.99999
    again = load_embedder(member(), "cpu", "auto", "int8")
    np.testing.assert_allclose(again.embed(batch()), small.embed(batch()), atol=f16(2))
    assert len(asked) == 1
    # What computes something else than it did when it was kept is not used, and without images there is nothing else.
    own = next((tmp_path / "cache").rglob("own.npy"))
    np.save(own, -np.load(own))
    with pytest.raises(ConfigurationError, match="only 0 images could be read"):
        load_embedder(member(), "cpu", "auto", "int8")


@pytest.mark.parametrize(
    ("bound", "value", "reason"),
    [
        ("LEAST_COSINE", 1.01, "are not enough for it"),
        ("LEAST_GAIN", 1e6, "are no faster"),
    ],
)
def test_members_that_eight_bits_do_not_suit_stay_in_float32(
    bound: str, value: float, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("nncf")
    monkeypatch.setattr(f"cbir.core.ensemble.runtime.quantisation.{bound}", value)
    plain = load_embedder(member(), "cpu", "openvino", "f32")
    for pictures in (lambda *_: batch(48), None):
        # The second start knows, and needs no images.
        found = load_embedder(member(), "cpu", "auto", "int8", pictures)
        assert found.precision == "f32"
        np.testing.assert_array_equal(found.embed(batch()), plain.embed(batch()))
        assert f"member 'm' stays in float32: 8-bit integers {reason}" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("faster", [False, True])
def test_linear_layers_are_quantised_in_the_faster_form(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf")
    vit = member(model="test_vit", options={"img_size": 32})
    times: list[bool] = []

    def watched(embedder: OpenVinoEmbedder, images: np.ndarray) -> float:
        # With convolutions, as it was, then float32 and what became of it.
        times.append(True)
        return [1.0 if faster else 3.0, 2.0, 9.0, 1.0][len(times) - 1]

    monkeypatch.setattr("cbir.core.ensemble.runtime.quantisation._seconds", watched)
    plain = load_embedder(vit, "cpu", "openvino", "f32")
    small = load_embedder(vit, "cpu", "auto", "int8", lambda *_: batch(48))
    assert (small.precision, len(times)) == ("int8", 4)
    assert (plain.embed(batch()) * small.embed(batch())).sum(axis=1).mean() > 0.97
    assert isinstance(small, OpenVinoEmbedder)
    nodes = small._request.get_compiled_model().get_runtime_model().get_ops()
    kinds = [node.get_rt_info()["layerType"].astype(str) for node in nodes]
    # Patches are embedded by a convolution in any case.
    assert (kinds.count("Convolution") > 1) == faster


def test_nothing_is_shown_on_stdout_while_networks_are_quantised(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nncf")
    load_embedder(member(), "cpu", "auto", "int8", lambda *_: batch(48))
    assert capfd.readouterr().out == ""


def test_eight_bits_are_of_openvino() -> None:
    with pytest.raises(ConfigurationError, match="torch-cpu has no int8 arithmetic here"):
        load_embedder(member(), "cpu", "torch", "int8")


def test_threads_are_shared_out_to_the_models_that_are_loaded_next() -> None:
    before, cv2_before, torch_before = threads(), cv2.getNumThreads(), torch.get_num_threads()
    try:
        share_out(Threads(inference=2, images=1))
        embedder = load_embedder(member(), "cpu", "openvino")
        assert isinstance(embedder, OpenVinoEmbedder)
        assert embedder.threads == 2
        assert cv2.getNumThreads() == 1
        load_embedder(member(), "cpu", "torch")
        assert torch.get_num_threads() == 2
        share_out(Threads(inference=1))
        assert load_embedder(member(), "cpu", "openvino").threads == 1  # type: ignore[attr-defined]
    finally:
        share_out(before)
        cv2.setNumThreads(cv2_before)
        torch.set_num_threads(torch_before)


def test_the_runtime_is_what_is_there() -> None:
    assert choose_runtime("cpu", "auto") == "openvino"
    assert choose_runtime("cpu", "torch") == "torch-cpu"
