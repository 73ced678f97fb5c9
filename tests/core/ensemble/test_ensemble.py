"""Ensemble files: what is read, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cbir.core.ensemble import EnsembleSpec, load_ensemble, member_fingerprint
from cbir.core.errors import EnsembleError
from cbir.core.images import Crop

GOOD = """[ensemble]
name = "mine"
crop = "border"

[[members]]
name = "first"
backend = "timm"
model = "test_resnet"
weights = "w.safetensors"
options = { pad_type = "same" }
input = { size = 64, mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5], interpolation = "bicubic" }
dim = 32
metric = "pca"
weight = 2.0
index = "faiss:HNSW32"

[[members]]
name = "second"
backend = "timm"
model = "test_vit"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "w.safetensors")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "ensemble.toml"
    path.write_text(text)
    return path


def test_a_file_is_read_with_its_defaults(folder: Path) -> None:
    spec = load_ensemble(write(folder, GOOD))
    first, second = spec.members
    assert (spec.name, spec.crop) == ("mine", Crop.BORDER)
    assert first.weights == str(folder / "w.safetensors")
    assert (first.input.size, first.input.mean, first.dim, first.weight) == (64, (0.5, 0.5, 0.5), 32, 2.0)
    assert (second.metric, second.dim, second.weight, second.index, second.weights) == ("glrt", 256, 1.0, "auto", None)
    assert EnsembleSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('crop = "border"', 'crop = "middle"', 3, "crop"),
        ('crop = "border"', "cropping = true", 3, "unknown key 'cropping'"),
        ('name = "second"', 'name = "first"', 18, "two members are named 'first'"),
        ("weight = 2.0", "weight = 0", 14, "weight is 0"),
        ("weight = 2.0", "weight = -1.5", 14, "weight is -1.5"),
        ("weight = 2.0", "weight = inf", 14, "weight is inf"),
        ("dim = 32", "dim = 0", 12, "dim is 0"),
        ('metric = "pca"', 'metric = "euclid"', 13, "metric is 'euclid'"),
        ('"w.safetensors"', '"gone.safetensors"', 9, "is not there"),
        ('"w.safetensors"', '"w.pth"', 9, "convert them to .safetensors"),
        ('index = "faiss:HNSW32"', 'index = "tree"', 15, "index is 'tree'"),
        ("dim = 32", "dims = 32", 12, "unknown key 'dims'"),
        ("size = 64", "sise = 64", 11, "unknown key 'sise' in input"),
        ("size = 64", "size = 4", 11, "input.size is 4"),
        ('model = "test_vit"', "", 17, "model is missing"),
        ('name = "second"', 'name = "a/b"', 18, "may hold letters"),
        ('"w.safetensors"', '"hf-hub:someone/weights"', 9, "neither a tag of a backend nor a file of numbers"),
        ('{ pad_type = "same" }', "{ weights_only = false }", 10, "'weights_only', which backend timm is not given"),
        ('{ pad_type = "same" }', '{ pad_type = "../w.pkl" }', 10, "names no file and no address"),
    ],
)
def test_mistakes_are_refused_with_their_line(folder: Path, old: str, new: str, line: int, words: str) -> None:
    assert old in GOOD
    with pytest.raises(EnsembleError) as caught:
        load_ensemble(write(folder, GOOD.replace(old, new)))
    assert f"ensemble.toml:{line}: " in str(caught.value)
    assert words in str(caught.value)
    assert caught.value.reason == "ENSEMBLE_INVALID"


def test_no_members_bad_toml_and_unknown_names(folder: Path) -> None:
    for text, words in (('[ensemble]\nname = "x"\n', r"no \[\[members\]\]"), ("[ensemble\n", "no valid TOML")):
        with pytest.raises(EnsembleError, match=words):
            load_ensemble(write(folder, text))
    with pytest.raises(EnsembleError, match="no ensemble 'nonesuch'"):
        load_ensemble("nonesuch")


def test_fingerprint_follows_what_changes_embeddings_and_nothing_else(folder: Path) -> None:
    def prints(text: str) -> str:
        spec = load_ensemble(write(folder, text))
        return member_fingerprint(spec.members[0], spec.crop)

    base = prints(GOOD)
    for old, new in (("weight = 2.0", "weight = 3.0"), ("dim = 32", "dim = 16"), ('"first"', '"renamed"')):
        assert prints(GOOD.replace(old, new)) == base
    for old, new in (('crop = "border"', 'crop = "none"'), ("size = 64", "size = 32"), ('"same"', '"valid"')):
        assert prints(GOOD.replace(old, new)) != base
    save_file({"x": np.ones(4, np.float32)}, folder / "w.safetensors")
    assert prints(GOOD) != base


def test_built_in_weights_are_named_by_their_place_in_the_package() -> None:
    spec = load_ensemble("compact")
    assert [member.name for member in spec.members] == ["convnext", "resnetv2"]
    data = spec.to_json()
    assert all(m["weights"].startswith("package:") for m in data["members"])
    assert EnsembleSpec.from_json(data) == spec
    size = sum(Path(str(m.weights)).stat().st_size for m in spec.members)
    assert size <= 15_000_000
