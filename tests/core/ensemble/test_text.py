"""Text towers: they belong to the image towers, need no hub, and embed class names as open_clip itself does."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import pytest
import tiny_clip
import torch
from precision import f32, least_cosine
from safetensors.torch import save_file

from cbir.core.ensemble import (
    MemberSpec,
    class_embeddings,
    has_text_tower,
    load_embedder,
    load_ensemble,
    load_text_embedder,
    member_fingerprint,
    seeded,
)
from cbir.core.ensemble.text_tower import readable
from cbir.core.errors import CbirError, EnsembleError

TEXTS = ["a red car", "two dogs on a beach", "Schrödinger's cat"]


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CBIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def reference(texts: Sequence[str], model: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return model.eval().encode_text(open_clip.get_tokenizer("tiny-clip")(list(texts)), normalize=True).numpy()


def test_the_text_tower_is_that_of_the_model() -> None:
    embedder = load_text_embedder(tiny_clip.member(), "cpu")
    with seeded():
        model = open_clip.create_model("tiny-clip")
    ours = embedder.embed_text(TEXTS)
    assert ours.shape == (3, embedder.dim) == (3, 32)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, reference(TEXTS, model), atol=f32(32))
    assert abs(ours @ ours.T - np.eye(3)).max() < 0.999, "different words must not get one vector"
    assert embedder.logit_scale == pytest.approx(1 / 0.07)
    assert embedder.embed_text([]).shape == (0, 32)


def test_many_texts_are_embedded_in_batches_and_in_order() -> None:
    embedder = load_text_embedder(tiny_clip.member(), "cpu")
    texts = [f"number {i}" for i in range(130)]
    together = embedder.embed_text(texts)
    np.testing.assert_allclose(
        together[[0, 64, 129]], embedder.embed_text([texts[i] for i in (0, 64, 129)]), atol=f32(256)
    )


def test_texts_beyond_the_context_are_cut_off() -> None:
    embedder = load_text_embedder(tiny_clip.member(), "cpu")
    long = " ".join(["word"] * 40)
    np.testing.assert_allclose(embedder.embed_text([long]), embedder.embed_text([f"{long} and a zebra"]), atol=f32(32))


def test_both_towers_come_from_one_file(tmp_path: Path) -> None:
    torch.manual_seed(7)
    tiny_clip.register()
    model = open_clip.create_model("tiny-clip")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "w.safetensors")
    spec = tiny_clip.member(weights=str(tmp_path / "w.safetensors"))
    np.testing.assert_allclose(load_text_embedder(spec, "cpu").embed_text(TEXTS), reference(TEXTS, model), atol=f32(32))
    assert load_embedder(spec, "cpu", "torch").dim == 32


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_image_towers_with_attention_run_on_openvino() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    eager, converted = (load_embedder(tiny_clip.member(), "cpu", runtime) for runtime in ("torch", "openvino"))
    assert converted.runtime == "openvino"
    cosines = (eager.embed(images) * converted.embed(images)).sum(axis=1)
    assert cosines.min() > least_cosine(converted.precision)


def test_class_names_are_embedded_as_open_clip_does() -> None:
    embedder = load_text_embedder(tiny_clip.member(), "cpu")
    ours = class_embeddings(embedder, ["sea_horse", "t-shirt", "Faces"])
    with seeded():
        model = open_clip.create_model("tiny-clip").eval()
    theirs = open_clip.build_zero_shot_classifier(
        model, open_clip.get_tokenizer("tiny-clip"), ["sea horse", "t shirt", "Faces"],
        open_clip.SIMPLE_IMAGENET_TEMPLATES,
    )  # fmt: skip
    np.testing.assert_allclose(ours, theirs.T.numpy(), atol=f32(256))


@pytest.mark.parametrize(
    ("label", "words"),
    [("sea_horse", "sea horse"), ("t-shirt", "t shirt"), ("Faces_easy", "Faces easy"), ("BACKGROUND", "BACKGROUND"),
     ("__x__", "x"), ("_", "_")],
)  # fmt: skip
def test_labels_become_words(label: str, words: str) -> None:
    assert readable(label) == words


def test_which_members_understand_words(tmp_path: Path) -> None:
    assert has_text_tower(MemberSpec("a", "open_clip", "ViT-B-32"))
    assert not has_text_tower(MemberSpec("a", "open_clip", "ViT-B-32", text=False))
    assert not has_text_tower(MemberSpec("a", "timm", "test_resnet"))
    with pytest.raises(EnsembleError, match="has no text tower"):
        load_text_embedder(MemberSpec("a", "timm", "test_resnet"), "cpu")
    file = tmp_path / "mute.toml"
    file.write_text('[[members]]\nname = "a"\nbackend = "open_clip"\nmodel = "ViT-B-32"\ntext = false\n')
    (mute,) = load_ensemble(file).members
    assert mute.text is False
    assert MemberSpec.from_json(mute.to_json()) == mute
    file.write_text(file.read_text().replace("false", "0"))
    with pytest.raises(CbirError, match=r"mute.toml:5: text is 0; it must be true or false"):
        load_ensemble(file)


def test_manifests_from_before_text_towers_are_read() -> None:
    data = tiny_clip.member().to_json()
    del data["text"]
    assert MemberSpec.from_json(data) == tiny_clip.member()


def test_the_text_tower_does_not_change_what_images_embed_to() -> None:
    from cbir.core.images import Crop

    prints = {member_fingerprint(tiny_clip.member(text=text), Crop.NONE) for text in (True, False)}
    assert len(prints) == 1


@pytest.mark.parametrize(
    ("problem", "reason", "words"),
    [
        (OSError("connection refused"), "WEIGHTS_UNREACHABLE", "connection refused"),
        (ModuleNotFoundError("No module named 'transformers'", name="transformers"), "BACKEND_MISSING",
         "pip install 'ensemble-cbir[text]'"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_cannot_be_had_is_explained(
    monkeypatch: pytest.MonkeyPatch, problem: Exception, reason: str, words: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise problem

    monkeypatch.setattr("open_clip.get_tokenizer", refuse)
    with pytest.raises(EnsembleError) as caught:
        load_text_embedder(MemberSpec("s", "open_clip", "ViT-B-16-SigLIP"), "cpu")
    assert caught.value.reason == reason
    assert words in str(caught.value)
    assert "text = false" in str(caught.value)
