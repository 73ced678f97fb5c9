"""A small published index, and what one does to it who can write into its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from cbir.core.artifacts import Gallery, GalleryImage, IndexStore, IndexVersion, Manifest
from cbir.core.artifacts.seal import Seal
from cbir.core.ensemble import EnsembleSpec, MemberSpec, member_fingerprint
from cbir.core.images import Box, Crop
from cbir.core.metric import Projection
from cbir.core.vector_index import build_index, index_file
from cbir.core.vote import LinearHead, VoteSettings

__all__ = ["ENSEMBLE", "publish", "read_all", "reseal"]

MEMBER = MemberSpec("m", "timm", "test_resnet")
ENSEMBLE = EnsembleSpec("tiny", (MEMBER,), Crop.NONE)


def publish(store: IndexStore, images: int = 3, index: str = "exact", dim: int = 4) -> IndexVersion:
    """Publish a version with every kind of file that an index may have but those of words."""
    rows = [
        GalleryImage(f"{i}", f"/x/{i}", f"k{i % 2}", 8, 8, f"{i:064x}", 2**63 + i, Box(0, 0, 8, 8), "s")
        for i in range(images)
    ]
    vectors = np.random.default_rng(0).standard_normal((images, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with store.lock():
        writer = store.begin()
        Gallery.from_images(rows).write(writer.file("images.parquet"))
        half = vectors.astype(np.float16)
        np.save(writer.file("members/m/embeddings.npy"), half)
        projection = Projection(np.zeros(dim, np.float32), np.eye(dim, dtype=np.float32), np.eye(dim, dtype=np.float32))
        save_file(projection.arrays(), writer.file("members/m/projection.safetensors"))
        if file := index_file(index):
            build_index(index, half, writer.file(f"members/m/{file}"))
        writer.write_heads({"m": LinearHead(np.ones((dim, 2), np.float32), np.zeros(2, np.float32))})
        writer.write_json("vote.json", VoteSettings({"m": 1.0}).to_json())
        facts = {"fingerprint": member_fingerprint(MEMBER, Crop.NONE), "index": index}
        return writer.publish(Manifest("", "now", images, 2, ENSEMBLE, {"m": facts}, {}))


def read_all(version: IndexVersion) -> None:
    """Use every file of a version, as a server does that loads it."""
    assert len(version.gallery.ids) == version.manifest.images
    vectors = version.embeddings("m")
    np.asarray(vectors).sum()
    version.projection("m")
    version.heads()
    _ = version.vote
    version.vector_index("m", "cpu", vectors)


def reseal(store: IndexStore, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change the live version's manifest under a seal of one's own; return the version's folder."""
    path = store.path / "versions" / store.current()
    (path / "manifest.json").write_text(json.dumps(change(json.loads((path / "manifest.json").read_text()))))
    seal = Seal.of(path.name, (path / "manifest.json").read_bytes())
    (path / "seal").write_text(seal.text())
    (store.path / "CURRENT").write_text(seal.text())
    return path
