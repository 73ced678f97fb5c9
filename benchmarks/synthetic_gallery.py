"""An index of random vectors without images: ``python benchmarks/synthetic_gallery.py OUT --images 20000``.

The cost of a search depends on the number of images, the length of their vectors and their distribution, not on what
the images show.  So vectors are drawn around class centres, with components that decay like those of trained
projections, and published through the indexer like any others; OUT/queries.npz has queries from the same distribution.
There are two members of 320 components each, both with the network of the first member of the built-in ensemble
``compact``, so that `cbir serve` can load the index and answer image queries too.  The gallery's image files do not
exist; `cbir bench serve` notices this.
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
#: Length of the noise relative to that of the class centre.
NOISE = 1.0
#: Number of query vectors, which are not part of the gallery.
QUERIES = 512


def ensemble() -> EnsembleSpec:
    """The two members."""
    network = load_ensemble("compact").members[0]
    members = tuple(replace(network, name=name, dim=WIDTH, metric="cosine", index="exact") for name in MEMBERS)
    return EnsembleSpec("synthetic", members, Crop.NONE)


def gallery(images: int, classes: int) -> Gallery:
    """Images that are assigned to the classes in turn; none has a file."""
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
    """Write an index version, make it the live one and return its name."""
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
    """Draw and publish the gallery."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--classes", type=int, default=100, help="0: images without labels")
    args = parser.parse_args()
    print(f"{args.out}: {publish(args.out, args.images, args.classes)}, {args.images:,} x {len(MEMBERS) * WIDTH}")


if __name__ == "__main__":
    main()
