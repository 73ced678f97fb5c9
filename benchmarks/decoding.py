"""What an image costs before the models see it: ``python benchmarks/decoding.py FOLDER``.

Photos of the folder are enlarged or shrunk to 0.06, 1 and 12 megapixels and written as JPEG (quality 85), PNG and WebP.
Each is decoded, cropped to its content and resized for two inputs, on one core, as the indexer and the server do it.
The table tells milliseconds of processor time an image (the best of several rounds, as other programs can only add to
it), and what libjpeg-turbo alone takes for a JPEG at the same scale.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from cbir.core.images import Crop, DecodeLimits, decode_image, find_content, prepare
from cbir.core.machine import machine_facts

FORMATS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 85}, "PNG": {}, "WEBP": {"quality": 85}}
STAGES = ("decode", "crop", "resize")
#: Milliseconds that are aimed at for a JPEG of so many megapixels.
AIMS = {0.06: 0.5, 1.0: 4.0, 12.0: 25.0}
#: OpenCV's names of libjpeg-turbo's scales.
SCALES = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}


def files(photos: Sequence[Path], megapixels: float, form: str) -> list[bytes]:
    """The photos at a size and in a format."""
    found = []
    for photo in photos:
        with Image.open(photo) as opened:
            image = opened.convert("RGB")
        scale = (1e6 * megapixels / (image.width * image.height)) ** 0.5
        size = round(image.width * scale), round(image.height * scale)
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.BICUBIC).save(buffer, form, **FORMATS[form])
        found.append(buffer.getvalue())
    return found


def least(work: Callable[[], object], rounds: int) -> float:
    """Milliseconds of this thread's processor time."""
    best = float("inf")
    for _ in range(rounds):
        begun = time.thread_time()
        work()
        best = min(best, time.thread_time() - begun)
    return 1e3 * best


def bare(data: bytes, limits: DecodeLimits) -> Callable[[], object]:
    """Decoding by libjpeg-turbo alone, at the scale that the limits ask for."""
    with Image.open(io.BytesIO(data)) as image:
        times = min(image.size) // (limits.draft_side or min(image.size))
    scale = max(scale for scale in SCALES if scale <= max(1, times))
    return lambda: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | SCALES[scale])


def measure(data: bytes, inputs: Sequence[int], limits: DecodeLimits, rounds: int) -> dict[str, float]:
    """Milliseconds by stage."""
    pixels = decode_image(data, limits).pixels
    box = find_content(pixels, Crop.CONTENT)

    def resize() -> None:
        for side in inputs:
            prepare(pixels, box, side, "bicubic")

    found = {
        "decode": least(lambda: decode_image(data, limits), rounds),
        "crop": least(lambda: find_content(pixels, Crop.CONTENT), rounds),
        "resize": least(resize, rounds),
    }
    if data.startswith(b"\xff\xd8"):
        found["bare"] = least(bare(data, limits), rounds)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=12)
    parser.add_argument("--inputs", type=int, nargs="+", default=[224, 240])
    parser.add_argument("--megapixels", type=float, nargs="+", default=list(AIMS))
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file too")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    every = sorted(args.folder.rglob("*.jpg"))
    photos = every[:: max(1, len(every) // args.photos)][: args.photos]
    limits = DecodeLimits().for_inputs(args.inputs)
    rows: list[dict[str, Any]] = []
    for megapixels in args.megapixels:
        for form in args.formats:
            # Encoding large photos takes longer than all else.
            some = files(photos[:3] if megapixels > 4 else photos, megapixels, form)
            each = [measure(data, args.inputs, limits, args.rounds) for data in some]
            means = {name: sum(one[name] for one in each) / len(each) for name in each[0]}
            rows.append({"megapixels": megapixels, "format": form, **means, "all": sum(means[s] for s in STAGES)})
    facts = machine_facts()
    print(f"{facts['cpu']} ({' '.join(facts['capabilities'])}), one core; ms an image, inputs {args.inputs}\n")
    print("| | decode | crop | resize | all | aim | bare libjpeg-turbo | decode / bare |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        jpeg = row["format"] == "JPEG"
        aim = AIMS.get(row["megapixels"]) if jpeg else None
        cells = [f"{row[stage]:.2f}" for stage in STAGES] + [f"**{row['all']:.2f}**", f"{aim:g}" if aim else ""]
        cells += [f"{row['bare']:.2f}", f"{row['decode'] / row['bare']:.2f}"] if jpeg else ["", ""]
        print(f"| {row['megapixels']:g} MP {row['format']} | " + " | ".join(cells) + " |")
    if args.json:
        args.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
