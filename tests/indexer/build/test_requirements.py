"""What a member lacks is told before the first image is read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
from tiny_members import RESNET

from cbir.core.artifacts import EmbeddingCache
from cbir.core.ensemble import EnsembleSpec, MemberSpec, load_ensemble, member_fingerprint
from cbir.core.errors import CbirError
from cbir.core.images import Crop
from cbir.indexer.build import FitSettings, build
from cbir.indexer.build.class_names import class_names_folder
from cbir.indexer.build.requirements import check_requirements
from cbir.indexer.sources import open_sources


@pytest.fixture
def siglip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemberSpec:
    """A very small model whose tokenizer is one of transformers, as SigLIP 2's is; the package is not there."""
    folder = tmp_path / "model_configs"
    folder.mkdir()
    config = {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {
            "context_length": 24, "vocab_size": 1000, "width": 32, "heads": 2, "layers": 1,
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2",
        },
    }  # fmt: skip
    (folder / "tiny-siglip2.json").write_text(json.dumps(config))
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-siglip2", config)
    monkeypatch.setitem(sys.modules, "transformers", None)
    return MemberSpec("words", "open_clip", "tiny-siglip2", dim=16, metric="pca")


def refused(tmp_path: Path, pictures: Callable[..., Path], ensemble: EnsembleSpec, index: str | None = None) -> str:
    """What `build` says; that it reads no image for that, and leaves nothing behind."""
    sources = open_sources([str(pictures(2))])
    sources.scan = sources.read = lambda *_: pytest.fail("an image was looked for")  # type: ignore[method-assign]
    with pytest.raises(CbirError) as caught:
        build(sources, tmp_path / "index", ensemble, fit=FitSettings(index=index))
    assert not (tmp_path / "index").exists()
    return str(caught.value)


def test_a_tokenizer_that_needs_a_package_is_told_at_once(
    tmp_path: Path, pictures: Callable[..., Path], siglip: MemberSpec
) -> None:
    said = refused(tmp_path, pictures, EnsembleSpec("e", (siglip,), Crop.NONE))
    assert "member 'words'" in said
    assert "pip install 'ensemble-cbir[text]'" in said
    assert "text = false" in said
    # Nobody is asked for words who is not to have any.
    check_requirements(EnsembleSpec("e", (replace(siglip, text=False),), Crop.NONE), None, tmp_path)


def test_who_embedded_names_before_is_not_asked_again(tmp_path: Path, siglip: MemberSpec) -> None:
    ensemble = EnsembleSpec("e", (siglip,), Crop.NONE)
    known = EmbeddingCache(tmp_path, class_names_folder(member_fingerprint(siglip, Crop.NONE)))
    known.put([bytes(32)], np.zeros((1, 32), np.float32))
    check_requirements(ensemble, None, tmp_path)
    with pytest.raises(CbirError, match="transformers"):
        check_requirements(ensemble, None, tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("index", "words"),
    [("faiss:Nonsense7", "does not know the factory string 'Nonsense7'"), ("annoy:0", "no index 'annoy:0'")],
)
def test_an_index_that_cannot_be_built_is_told_at_once(
    tmp_path: Path, pictures: Callable[..., Path], index: str, words: str
) -> None:
    (tmp_path / "e.toml").write_text(f'[ensemble]\nname = "e"\n{RESNET}')
    ensemble = load_ensemble(tmp_path / "e.toml")
    assert words in refused(tmp_path, pictures, ensemble, index)
    for fine in ("auto", "exact", "faiss:Flat", "faiss:IVF16,PQ32", "faiss:OPQ16,IVF8,PQ16x4fs", "faiss:HNSW32,SQ8"):
        check_requirements(ensemble, fine, tmp_path)
    spoilt = replace(ensemble, members=(replace(ensemble.members[0], index="faiss:Nonsense7"),))
    assert "Nonsense7" in refused(tmp_path, pictures, spoilt)


def test_weights_that_are_not_there_are_told_at_once(tmp_path: Path, pictures: Callable[..., Path]) -> None:
    (tmp_path / "e.toml").write_text(f'[ensemble]\nname = "e"\n{RESNET}')
    ensemble = load_ensemble(tmp_path / "e.toml")
    member = replace(ensemble.members[0], weights=str(tmp_path / "gone.safetensors"))
    assert "gone.safetensors of member 'resnet' is not there" in refused(
        tmp_path, pictures, replace(ensemble, members=(member,))
    )
