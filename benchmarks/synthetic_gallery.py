"""An index of vectors that no image stands behind: ``python benchmarks/synthetic_gallery.py OUT --images 20000``.

What a search costs depends on the number of images, the length of their vectors and how they lie, not on what they
show: so the vectors are drawn around the centres of classes, with components that decay as those of trained projections
do, and published through the indexer like any others; OUT/queries.npz has queries that are drawn likewise.  Two members
of 320 components each, both with the network of the built-in ``compact``'s first member, so that `cbir serve` can load
it and be asked with images too; their files are nowhere, which `cbir bench serve` notices.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from cbir.core.artifacts import Gallery, GalleryImage, IndexStore
from cbir.core.ensemble import EnsembleSpec, load_ensemble, member_fingerprint
from cbir.core.images import Box, Crop
from cbir.core.metric import normalise
from cbir.core.vote import VoteSettings
from cbir.indexer.build import VersionContent, write_version

MEMBERS = ("first", "second")
WIDTH = 320
#: Length of the noise beside that of the class's centre.
NOISE = 1.0
#: Vectors that are queries and no images.
QUERIES = 512


def ensemble() -> EnsembleSpec:
    """The two members."""
    network = load_ensemble("compact").members[0]
    members = tuple(replace(network, name=name, dim=WIDTH, metric="cosine", index="exact") for name in MEMBERS)
    return EnsembleSpec("synthetic", members, Crop.NONE)


def gallery(images: int, classes: int) -> Gallery:
    """Images whose classes come in turn; none has a file."""
    box = Box(0, 0, 640, 480)

    def image(number: int) -> GalleryImage:
        digest = hashlib.sha256(number.to_bytes(8, "little"))
        return GalleryImage(
            id=f"{number:09}", uri=f"nowhere/{number:09}.jpg",
            label=f"class {number % classes:04}" if classes else None, width=640, height=480,
            sha256=digest.hexdigest(), phash=int.from_bytes(digest.digest()[:8], "little"), crop=box,
        )  # fmt: skip

    return Gallery.from_images(image(number) for number in range(images))


def vectors(member: str, images: int, classes: int) -> np.ndarray:
    """(N + QUERIES, 320) float32 unit vectors around their classes' centres."""
    rng = np.random.default_rng(MEMBERS.index(member))
    centres = rng.standard_normal((max(1, classes), WIDTH), dtype=np.float32) * (1 if classes else 0)
    noise = rng.standard_normal((images + QUERIES, WIDTH), dtype=np.float32)
    decay = np.exp(-3 * np.arange(WIDTH) / WIDTH).astype(np.float32)
    return normalise((centres[np.arange(len(noise)) % len(centres)] + NOISE * noise) * decay)


def publish(out: Path, images: int, classes: int) -> str:
    """Write a version and make it the live one; returns its name."""
    made = ensemble()
    content = VersionContent(
        gallery(images, classes),
        made,
        lambda member: vectors(member, images, classes)[:images],
        {member.name: member_fingerprint(member, made.crop) for member in made.members},
        VoteSettings(dict.fromkeys(MEMBERS, 1.0)),
        device="cpu",
    )
    store = IndexStore(out)
    with store.lock():
        name = write_version(store.begin(), content, lambda progress: None).name
    np.savez(out / "queries.npz", **{member: vectors(member, images, classes)[images:] for member in MEMBERS})
    return name


def main() -> None:
    """Publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--classes", type=int, default=100, help="0: images without labels")
    args = parser.parse_args()
    print(f"{args.out}: {publish(args.out, args.images, args.classes)}, {args.images:,} x {len(MEMBERS) * WIDTH}")


if __name__ == "__main__":
    main()
