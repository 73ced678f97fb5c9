"""Which copies are recognised, and how fast close hashes are found.

    python benchmarks/quality/near_duplicates.py INDEX

Draws images of the index at random, changes each in several ways, and counts how often the changed copy is recognised
as a near duplicate of the original: by the perceptual hash alone, and with the members' confirmation.  Then the search
for close pairs is timed on random hashes whose bits are 1 with different probabilities, as in those of real images.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from cbir.core.search import BITS
from cbir.core.search.near_duplicates import close_pairs
from cbir.server.engine import Engine, EngineQuery, ImageBytes

Change = Callable[[Image.Image], Image.Image]


def smaller(image: Image.Image) -> Image.Image:
    """Scaled to half its width and height."""
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.LANCZOS)


def cut(share: float) -> Change:
    """Cropped: ``share`` of the width and of the height are removed, half of it at each side."""

    def change(image: Image.Image) -> Image.Image:
        x, y = round(image.width * share / 2), round(image.height * share / 2)
        return image.crop((x, y, image.width - x, image.height - y))

    return change


CHANGES: dict[str, tuple[Change, int]] = {
    "JPEG, quality 30": (lambda image: image, 30),
    "half the size": (smaller, 90),
    "3 % cut off": (cut(0.03), 90),
    "6 % cut off": (cut(0.06), 90),
    "20 % brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.2), 90),
    "20 % darker": (lambda image: ImageEnhance.Brightness(image).enhance(0.8), 90),
    "mirrored": (ImageOps.mirror, 90),
}


def recognised(engine: Engine, row: int, change: Change, quality: int) -> tuple[bool, bool]:
    """Whether the changed copy's hash is close, and whether a search with exclude_query leaves the original out."""
    with Image.open(io.BytesIO(engine.gallery.read_bytes(row))) as image:
        file = io.BytesIO()
        change(image.convert("RGB")).save(file, "JPEG", quality=quality)
    query = EngineQuery(ImageBytes(file.getvalue()), exclude_query=True, limit=100)
    rows, *_ = engine.prepare(query).suspects[None]
    close = row in rows
    return close, close and engine.gallery.ids[row] not in {hit.image.id for hit in engine.search(query).hits}


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--hashes", type=int, default=1_000_000)
    args = parser.parse_args()
    engine = Engine.load(args.index)
    rng = np.random.default_rng(0)
    count = min(args.images, len(engine.gallery))
    rows = rng.choice(len(engine.gallery), count, replace=False).tolist()
    print(f"{count} of {len(engine.gallery)} images, {BITS} bits")
    print("| change | close hash | near duplicate |\n| --- | --- | --- |")
    for name, (change, quality) in CHANGES.items():
        close, found = np.mean([recognised(engine, row, change, quality) for row in rows], axis=0)
        print(f"| {name} | {100 * close:.0f} % | {100 * found:.0f} % |", flush=True)
    odds = rng.beta(1.5, 1.5, 64)
    bits = [(rng.random(args.hashes) < p).astype(np.uint64) << np.uint64(n) for n, p in enumerate(odds)]
    hashes = np.unique(np.bitwise_or.reduce(bits))
    for most in (2, 4, 6):
        begun = time.perf_counter()
        pairs = len(close_pairs(hashes, most))
        print(f"{len(hashes):,} hashes, {most} bits: {pairs} pairs in {time.perf_counter() - begun:.1f} s", flush=True)


if __name__ == "__main__":
    main()
