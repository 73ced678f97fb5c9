"""An index of made-up vectors in clusters, with labels and metadata, published to any store of vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from cbir.core.artifacts import Gallery, GalleryImage, IndexStore, IndexVersion, Manifest
from cbir.core.ensemble import EnsembleSpec, MemberSpec, member_fingerprint
from cbir.core.images import Box, Crop
from cbir.core.metric import Projection
from cbir.core.search import VectorStore
from cbir.core.vote import LinearHead, VoteSettings

__all__ = ["DIMS", "HOSTILE", "MEMBERS", "clustered", "publish"]

MEMBERS = tuple(MemberSpec(name, "timm", "test_resnet") for name in ("eye", "ear", "nose"))
DIMS = (12, 8, 10)
#: Labels and values that end an expression, an index or a path early where somebody puts them into one.
HOSTILE = ('a"b', "it's", 'x" or row >= 0 or label == "', "c\\", "{y}", "Z\u00fcrich\n", "%s; drop", "")


def clustered(count: int, clusters: int, seed: int, noise: float = 0.6) -> tuple[list[NDArray[np.float16]], list[int]]:
    """Unit vectors of each member around common centres, and the cluster of each row."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, clusters, count)
    parts = []
    for dim in DIMS:
        centres = np.random.default_rng(dim).standard_normal((clusters, dim))
        rows = centres[codes] + noise * rng.standard_normal((count, dim))
        parts.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16))
    return parts, codes.tolist()


def publish(
    index: Path,
    vectors: VectorStore,
    count: int = 600,
    clusters: int = 8,
    seed: int = 0,
    vote: VoteSettings | None = None,
) -> IndexVersion:
    """Publish a version; every seventh image has no label, every fifth no metadata, and rows 3 and 4 are the same."""
    parts, codes = clustered(count, clusters, seed)
    for part in parts:
        part[4] = part[3]
    names = [*filter(None, HOSTILE), *(f"k{code}" for code in range(clusters))]
    images = [
        GalleryImage(
            f"{i:06d}", f"/x/{i}", None if i % 7 == 0 else names[code], 8, 8, f"{i:064x}", 2**63 + i,
            Box(0, 0, 8, 8), "s", {} if i % 5 == 0 else {"from": HOSTILE[i % 8], 'o"d': str(i % 3)},
        )
        for i, code in enumerate(codes)
    ]  # fmt: skip
    gallery = Gallery.from_images(images)
    vote = vote or VoteSettings({"eye": 1.0, "ear": 0.5, "nose": 2.0}, label_share=0.5)
    store = IndexStore(index, on_live=vectors.make_live)
    with store.lock():
        writer = store.begin()
        gallery.write(writer.file("images.parquet"))
        facts = {}
        rng = np.random.default_rng(7)
        heads = {}
        for member, part in zip(MEMBERS, parts, strict=True):
            np.save(writer.file(f"members/{member.name}/embeddings.npy"), part)
            projection = Projection(np.zeros(part.shape[1], np.float32), None, None)
            save_file(projection.arrays(), writer.file(f"members/{member.name}/projection.safetensors"))
            shape = (part.shape[1], len(gallery.labels))
            heads[member.name] = LinearHead(
                rng.standard_normal(shape).astype(np.float32), np.zeros(shape[1], np.float32)
            )
            facts[member.name] = {"fingerprint": member_fingerprint(member, Crop.NONE), "index": "exact"}
        writer.write_heads(heads)
        writer.write_json("vote.json", vote.to_json())
        kept = vectors.keep(
            writer.path, gallery, {member.name: "exact" for member in MEMBERS}, lambda done, total: None
        )
        ensemble = EnsembleSpec("three", MEMBERS, Crop.NONE)
        return writer.publish(Manifest("", "now", count, len(gallery.labels), ensemble, facts, {}, store=kept))
