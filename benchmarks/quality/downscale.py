"""Are the hits the same when the client makes large images smaller, and how many bytes does it save?

``python benchmarks/quality/downscale.py ZIP`` splits a labelled zip as ``retrieval.py`` does, indexes the gallery, and
asks with every query three times: as it is, as a photo of 12 megapixels (enlarged, with a camera's noise, JPEG of
quality 90), and as that photo in a PNG.  Each is answered as the file itself and as what the client sends in its place.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from retrieval import add_arguments, run_cbir, split, working_folder

from cbir.client._downscale import WORTHWHILE_BYTES, downscaled
from cbir.server.engine import Engine, EngineQuery, ImageBytes
from cbir.server.limits import Limits

MEGAPIXELS = 12


def photo(file: Path, seed: int) -> Image.Image:
    """The picture at 12 megapixels, with a little noise as cameras add it."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    scale = (MEGAPIXELS * 1e6 / (image.width * image.height)) ** 0.5
    large = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(seed).normal(0, 3, (large.height, large.width, 1)).astype(np.float32)
    return Image.fromarray(np.clip(np.asarray(large, np.float32) + grain, 0, 255).astype(np.uint8))


def forms(file: Path, seed: int, wanted: list[str]) -> Iterator[tuple[str, bytes]]:
    """The query as it is, and as large photos."""
    if "as it is" in wanted:
        yield "as it is", file.read_bytes()
    if {"JPEG", "PNG"} & set(wanted):
        large = photo(file, seed)
        for form, options in (("JPEG", {"quality": 90}), ("PNG", {"compress_level": 1})):
            if form in wanted:
                buffer = io.BytesIO()
                large.save(buffer, form, **options)
                yield form, buffer.getvalue()


def sent_for(data: bytes, side: int) -> bytes:
    """What the client sends for a file."""
    smaller = downscaled(data, side) if len(data) >= WORTHWHILE_BYTES else None
    return data if smaller is None else smaller[0]


def hits(engine: Engine, *files: bytes) -> list[list[str]]:
    """The ids of the ten best hits of each file."""
    batch = [engine.prepare(EngineQuery(ImageBytes(data))) for data in files]
    return [[hit.image.id for hit in answer.hits] for answer in engine.answer(batch)]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--ensemble", default="lite")
    parser.add_argument("--index", type=Path, default=None, help="an index of the gallery that exists")
    parser.add_argument("--every", type=int, default=1, help="every n-th query only")
    parser.add_argument("--forms", nargs="+", default=["as it is", "JPEG", "PNG"])
    args = parser.parse_args()
    with working_folder(args) as work:
        gallery, queries = split(args.archive, work)
        index = args.index or work / "index"
        if args.index is None:
            run_cbir("index", str(gallery), "--out", str(index), "--ensemble", args.ensemble)
        engine = Engine.load(index, limits=Limits(max_batch=2))
        side = engine.info.query_side
        figures: dict[str, dict[str, float]] = {}
        for seed, file in enumerate(sorted(queries.rglob("*.jpg"))[:: args.every]):
            for form, data in forms(file, seed, args.forms):
                sent = sent_for(data, side)
                # Where the file itself is sent there is nothing to compare.
                one, other = hits(engine, data, sent) if sent is not data else ([], [])
                row = figures.setdefault(form, dict.fromkeys(("queries", "order", "ten", "first", "bytes", "sent"), 0))
                facts = (1, one == other, set(one) == set(other), one[:1] == other[:1], len(data), len(sent))
                for name, value in zip(row, facts, strict=True):
                    row[name] += value
    print("| query | queries | same top 10 | same order too | same first hit | bytes sent |")
    print("| --- | --- | --- | --- | --- | --- |")
    for form, row in figures.items():
        shares = " | ".join(f"{row[name] / row['queries']:.1%}" for name in ("ten", "order", "first"))
        print(f"| {form} | {row['queries']:.0f} | {shares} | {row['sent'] / row['bytes']:.1%} |")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
