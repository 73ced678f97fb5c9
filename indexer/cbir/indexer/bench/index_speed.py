"""``cbir bench index``: how fast images are embedded, against decoding alone and forward passes alone.

The model of overlap: decoding (read, decode, crop, hash, resize) runs in workers, forward passes run beside it.  On a
GPU they use different hardware, so the faster of the two disappears behind the slower, and the limit is the slower one.
On a CPU they share the cores: each of the two rates is measured with all cores, and what both together can reach is
the rate at which the cores do one after the other, 1 / (1/decode + 1/forward).  Both ratios are told.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cbir.core.ensemble import Embedder, EnsembleSpec, load_embedder
from cbir.core.images import DecodeLimits, DecodingPool, find_content, perceptual_hash, prepare
from cbir.core.machine import machine_facts
from cbir.indexer.build import EmbeddingRun, RunSettings, build
from cbir.indexer.samples import LABELS, draw_sample
from cbir.indexer.sources import SourceImage, Sources, open_sources

__all__ = ["IndexPlan", "measure_index"]

#: Share of a limit, and times the loop, that should be reached.
SHARE, TIMES = 0.9, 4.0
#: Width of drawn pictures in pixels, which are then cut to 4:3, and how many are really different.
_WIDTH, _DISTINCT = 640, 32


@dataclass(frozen=True)
class IndexPlan:
    """What is measured.

    Attributes:
        sources: Where the images are; none: pictures are drawn.
        images: How many are embedded.
        loop: How many the loop that users write is measured on.
        rounds: How often the three rates are measured, in turn; medians are told.
    """

    ensemble: EnsembleSpec
    sources: tuple[str, ...]
    images: int
    loop: int
    rounds: int
    settings: RunSettings
    seed: int
    work: Path


def measure_index(plan: IndexPlan, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; return a document for JSON."""
    shutil.rmtree(plan.work, ignore_errors=True)
    plan.work.mkdir(parents=True)
    facts = machine_facts()
    sources = open_sources(plan.sources or (_drawn(plan, say),))
    images = _chosen(sources, plan.images, plan.seed)
    say("load the models")
    embedders = {
        member.name: load_embedder(member, plan.settings.device, plan.settings.runtime, plan.settings.precision)
        for member in plan.ensemble.members
    }
    rates: dict[str, list[float]] = {"decode": [], "forward": [], "indexer": []}
    for number in range(plan.rounds):
        say(f"decode {len(images)} images, nothing else, round {number + 1}")
        rates["decode"].append(_decode_rate(images, sources, embedders, plan))
        say(f"forward passes alone, round {number + 1}")
        rates["forward"].append(_forward_rate(embedders, len(images), plan.settings.batch, plan.seed))
        say(f"embed, round {number + 1}")
        cache = plan.work / f"cache-{number}"
        rates["indexer"].append(_indexer_rate(images, sources, cache, plan))
    say("the loop that users write")
    loop = _loop_rate(images[: plan.loop], sources, plan.ensemble)
    say("the whole command")
    whole = build(_Some(sources, images), plan.work / "index", plan.ensemble, plan.settings)
    median = {name: statistics.median(values) for name, values in rates.items()}
    document: dict[str, Any] = {
        "machine": facts,
        "plan": {
            "ensemble": plan.ensemble.name, "members": [m.name for m in plan.ensemble.members], "images": len(images),
            "sources": list(plan.sources) or ["drawn"], "batch": plan.settings.batch, "seed": plan.seed,
            "runtimes": {name: embedder.runtime for name, embedder in embedders.items()},
        },
        "rates": {**median, "loop": loop, "command": whole.images / whole.seconds},
        "rounds": rates,
    }  # fmt: skip
    shared = not any("cuda" in embedder.runtime for embedder in embedders.values())
    document["ratios"] = _ratios(document["rates"], shared=shared)
    return document


class _Some:
    """Some of the images of sources, as sources."""

    def __init__(self, sources: Sources, images: Sequence[SourceImage]) -> None:
        self._sources, self._images = sources, images
        self.problems = sources.problems
        self.settle, self.read = sources.settle, sources.read

    def stream(self) -> Iterator[tuple[int, SourceImage]]:
        return ((0, image) for image in self._images)

    def scan(self) -> list[SourceImage]:
        return list(self._images)

    def read_parts(self) -> list[dict[str, Any]]:
        return []

    def same_as(self, told: object) -> bool:
        return False


def _drawn(plan: IndexPlan, say: Callable[[str], None]) -> str:
    """A folder of JPEGs, no two of which have the same bytes."""
    say(f"draw {plan.images} pictures")
    folder = plan.work / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(plan.seed)
    pictures = [
        draw_sample(LABELS[k % len(LABELS)], k, plan.seed, _WIDTH).crop((0, 0, _WIDTH, _WIDTH * 3 // 4))
        for k in range(min(_DISTINCT, plan.images))
    ]
    for number in range(plan.images):
        pixels = np.asarray(pictures[number % len(pictures)]).copy()
        pixels[:8, :8] = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06}.jpg", quality=90)
    return str(folder)


def _chosen(sources: Sources, count: int, seed: int) -> list[SourceImage]:
    images = sources.scan()
    if len(images) <= count:
        return images
    chosen = np.random.default_rng(seed).choice(len(images), count, replace=False)
    return [images[place] for place in np.sort(chosen).tolist()]


def _decode_rate(
    images: Sequence[SourceImage], sources: Sources, embedders: Mapping[str, Embedder], plan: IndexPlan
) -> float:
    """Images a second of everything that is done with one before the forward passes, by workers that have started."""
    specs = {(embedder.size, embedder.interpolation) for embedder in embedders.values()}
    workers = plan.settings.workers or os.cpu_count() or 1
    limits = DecodeLimits().for_inputs(size for size, _ in specs)
    with ThreadPoolExecutor(workers) as pool:
        decoding = DecodingPool(workers, seconds=60, max_pixels=limits.max_pixels, niceness=0)

        def one(image: SourceImage) -> None:
            data = sources.read(image)
            hashlib.sha256(data).digest()
            decoded = decoding.decode(data, limits, lambda: True)
            box = find_content(decoded.pixels, plan.ensemble.crop)
            perceptual_hash(decoded.pixels, box)
            for spec in specs:
                prepare(decoded.pixels, box, *spec)

        def every(some: Sequence[SourceImage]) -> None:
            for _ in pool.map(one, some):
                pass

        try:
            every(images[: 4 * workers])
            return len(images) / _timed(lambda: every(images))
        finally:
            decoding.close()


def _forward_rate(embedders: Mapping[str, Embedder], count: int, batch: int, seed: int) -> float:
    """Images a second through all members, in full batches."""
    rng = np.random.default_rng(seed)
    inputs = {
        size: rng.integers(0, 256, (batch, size, size, 3), np.uint8)
        for size in {embedder.size for embedder in embedders.values()}
    }
    for embedder in embedders.values():
        embedder.embed(inputs[embedder.size])
    batches = max(1, count // batch)

    def work() -> None:
        for _ in range(batches):
            for embedder in embedders.values():
                embedder.embed(inputs[embedder.size])

    return batches * batch / _timed(work)


def _indexer_rate(images: Sequence[SourceImage], sources: Sources, cache: Path, plan: IndexPlan) -> float:
    """Images a second of the embed stage, from the second batch on: the first one waits for the models."""
    run = EmbeddingRun(plan.ensemble, cache, plan.settings)
    first, rest = images[: plan.settings.batch], images[plan.settings.batch :] or images
    for _ in run.run(first, sources):
        pass

    def work() -> None:
        for _ in run.run(rest, sources, len(rest)):
            pass

    return len(rest) / _timed(work)


def _loop_rate(images: Sequence[SourceImage], sources: Sources, ensemble: EnsembleSpec) -> float:
    """Images a second of: open one image, forward in torch, add to FAISS."""
    import faiss

    members = [load_embedder(member, "cpu", "torch") for member in ensemble.members]
    indexes = [faiss.IndexFlatIP(member.dim) for member in members]

    def one(image: SourceImage) -> None:
        with Image.open(image.uri) as opened:
            picture = opened.convert("RGB")
        for member, index in zip(members, indexes, strict=True):
            side = (member.size, member.size)
            pixels: NDArray[np.uint8] = np.array(picture.resize(side, Image.Resampling.BICUBIC))
            index.add(member.embed(pixels[None]))

    def work() -> None:
        for image in images:
            one(image)

    one(images[0])
    return len(images) / _timed(work)


def _ratios(rates: Mapping[str, float], *, shared: bool) -> list[dict[str, Any]]:
    decode, forward, indexer = rates["decode"], rates["forward"], rates["indexer"]
    slower, both = min(decode, forward), 1 / (1 / decode + 1 / forward)
    made = f"{indexer:.1f} a second; decode alone {decode:.1f}, forward alone {forward:.1f}"
    return [
        _ratio("indexer / slower of decode and forward", indexer / slower, SHARE, made),
        *([_ratio("indexer / decode and forward on the same cores", indexer / both, SHARE,
                  f"{indexer:.1f} a second; both in turn on all cores {both:.1f}")] if shared else []),
        _ratio("indexer / the loop that users write", indexer / rates["loop"], TIMES,
               f"{indexer:.1f} a second; one image at a time in torch, then FAISS: {rates['loop']:.1f}"),
    ]  # fmt: skip


def _ratio(name: str, value: float, aim: float, how: str) -> dict[str, Any]:
    return {"name": name, "value": value, "aim": f"at least {aim:g}", "reached": bool(value >= aim), "how": how}


def _timed(work: Callable[[], object]) -> float:
    begun = perf_counter()
    work()
    return perf_counter() - begun
