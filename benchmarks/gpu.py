"""How well the engine uses a GPU: ``python benchmarks/gpu.py``; the same on a CPU: ``--device cpu --set tiny``.

An ensemble with random weights answers images in batches.  Three things are compared in one run: the bare batched
forward passes of its members (on a GPU with images and results staying there), the whole engine (decoding, embedding,
searching and voting), and the device's measured peak rates of matrix products and copies.  Prints a table and writes
JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import peak
import random_index
import torch

from cbir.core.ensemble import Embedder, EnsembleSpec, embed_all
from cbir.core.ensemble.runtime.cuda import CudaEmbedder
from cbir.core.machine import Threads, share_out
from cbir.indexer.samples import LABELS
from cbir.indexer.samples.sample_split import draw_sample
from cbir.server.engine import Engine, EngineQuery, ImageBytes
from cbir.server.limits import Limits

#: Name of a precision -> torch's type.
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}

Batches = dict[tuple[int, str], np.ndarray]


def operations(ensemble: EnsembleSpec, embedders: dict[str, Embedder]) -> float:
    """Floating-point operations of all members' forward passes for one image."""
    total = 0.0
    for member, network in zip(ensemble.members, random_index.SETS[ensemble.name], strict=True):
        module = network.create().eval()
        size = embedders[member.name].size
        forward = module.encode_image if network.backend == "open_clip" else module
        total += peak.operations(partial(forward, torch.zeros(1, 3, size, size)))
    return total


def blank(embedders: dict[str, Embedder], count: int) -> Batches:
    """A batch of random images for every input form."""
    rng = np.random.default_rng(0)
    forms = {(e.size, e.interpolation) for e in embedders.values()}
    return {form: rng.integers(0, 256, (count, form[0], form[0], 3), dtype=np.uint8) for form in forms}


def bare(embedders: dict[str, Embedder], batches: Batches) -> None:
    """The forward passes alone.  On a GPU the graphs of all members run at once on whatever lies in their buffers."""
    count = len(next(iter(batches.values())))
    on_gpu = [e for e in embedders.values() if isinstance(e, CudaEmbedder)]
    for embedder in on_gpu:
        embedder.replay(count)
    for embedder in embedders.values():
        if not isinstance(embedder, CudaEmbedder):
            embedder.embed(batches[embedder.size, embedder.interpolation])


def in_turn(embedders: dict[str, Embedder], batches: Batches) -> None:
    """The members' forward passes one after the other, including copies to and from the device and waiting."""
    for embedder in embedders.values():
        embedder.embed(batches[embedder.size, embedder.interpolation])


def answered(engine: Engine, queries: Sequence[EngineQuery], batch: int, workers: int) -> None:
    """Answer all queries: threads prepare the next ones while a batch is answered."""
    with ThreadPoolExecutor(workers) as pool:
        prepared = pool.map(engine.prepare, queries)
        while part := list(islice(prepared, batch)):
            engine.answer(part)


def median_seconds(work: Any, place: str, repeats: int) -> float:
    """Median time of calls of ``work`` in seconds, after one untimed call."""
    work()
    return statistics.median(peak.timed(work, place) for _ in range(repeats))


def stages(engine: Engine, queries: Sequence[EngineQuery]) -> dict[str, float]:
    """Median milliseconds of a single image in flight, in total and by stage."""
    whole, parts = [], []
    for query in queries:
        begun = perf_counter()
        result = engine.search(query)
        whole.append(perf_counter() - begun)
        parts.append(vars(result.timings))
    names = ("decode", "embed", "search", "fuse")
    return {
        "whole": 1e3 * statistics.median(whole),
        **{name: 1e3 * statistics.median(part[name] for part in parts) for name in names},
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything."""
    ensemble, index = random_index.prepared_index(args.out, args.set, args.gallery)
    limits = Limits(max_batch=args.batch)
    engine = Engine.load(index, device=args.device, runtime=args.runtime, precision=args.precision, limits=limits)
    embedders = dict(engine.embedders)
    place = "cuda" if any(isinstance(e, CudaEmbedder) for e in embedders.values()) else "cpu"
    begun = perf_counter()
    sizes = list(engine.buckets)
    engine.warm_up(sizes)
    warmed = perf_counter() - begun
    precision = next(iter(embedders.values())).precision
    facts = peak.machine(place)
    rate = peak.matrix_rate(place, TYPES.get(precision, torch.float32), args.matrix)
    queries = []
    for number in range(args.batch * args.batches):
        file = io.BytesIO()
        draw_sample(LABELS[number % len(LABELS)], number % 64, size=args.side).save(file, "JPEG", quality=90)
        queries.append(EngineQuery(ImageBytes(file.getvalue())))
    batches = blank(embedders, args.batch)
    workers = facts["cores"]
    work = operations(ensemble, embedders)
    each = {
        "bare forward": median_seconds(lambda: bare(embedders, batches), place, args.repeats) / args.batch,
        "forward, members in turn": median_seconds(lambda: in_turn(embedders, batches), place, args.repeats)
        / args.batch,
        "forward, members together": median_seconds(lambda: embed_all(embedders, batches), place, args.repeats)
        / args.batch,
        "decode and crop": median_seconds(lambda: prepare_all(engine, queries, workers), "cpu", 2) / len(queries),
        "engine": median_seconds(lambda: answered(engine, queries, args.batch, workers), place, 3) / len(queries),
    }
    bound = max(each["bare forward"], each["decode and crop"])
    result = {
        "machine": facts,
        "members": {name: f"{e.runtime} {e.precision}" for name, e in embedders.items()},
        "graphs": {name: e.graphs for name, e in embedders.items() if isinstance(e, CudaEmbedder)},
        "warm-up": {"sizes": sizes, "seconds": warmed},
        "operations per image": work,
        f"{precision} products, peak": rate,
        "copies, peak": peak.copy_rate(place, args.copy),
        "batch": args.batch,
        "images per second": {name: 1 / value for name, value in each.items()},
        "shares of peak products": {name: work / each[name] / rate for name in each if name != "decode and crop"},
        "engine to bare forward": each["bare forward"] / each["engine"],
        "engine to the slower of forward and decode": bound / each["engine"],
        "one in flight, p50 ms": stages(engine, queries[: args.singles]),
        "one image, bare forward ms": 1e3 * median_seconds(lambda: bare(embedders, blank(embedders, 1)), place, 20),
    }
    if place == "cuda":
        result["uploads, peak"] = peak.upload_rate(args.copy)
    return result


def prepare_all(engine: Engine, queries: Sequence[EngineQuery], workers: int) -> None:
    """Decode, crop and resize all images, and nothing else."""
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(engine.prepare, queries):
            pass


def table(result: dict[str, Any]) -> None:
    """Print the results as a table."""
    facts = result["machine"]
    gpu = f"{facts['gpu']['name']}; " if "gpu" in facts else ""
    print(
        f"{gpu}{facts['cpu']}, {facts['cores']} cores, {', '.join(facts['capabilities'])}; load {facts['load_before']}"
    )
    print(", ".join(f"{name} {runtime}" for name, runtime in result["members"].items()))
    for name, value in result.items():
        if name.endswith(", peak"):
            print(f"{name}: {value / 1e9:,.0f} G/s")
    print(f"{result['operations per image'] / 1e9:.1f} Gflop an image, batches of {result['batch']}")
    print("\n| | images per second | share of peak |\n| --- | --- | --- |")
    for name, value in result["images per second"].items():
        share = result["shares of peak products"].get(name)
        print(f"| {name} | {value:.4g} | {'' if share is None else f'{100 * share:.0f} %'} |")
    print(f"\nengine to bare forward {result['engine to bare forward']:.2f}, to the slower of forward and decode "
          f"{result['engine to the slower of forward and decode']:.2f}")  # fmt: skip
    parts = ", ".join(f"{name} {value:.2f}" for name, value in result["one in flight, p50 ms"].items())
    print(f"one in flight, ms: {parts}; bare forward {result['one image, bare forward ms']:.2f}")


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--runtime", choices=("auto", "openvino", "torch"), default="auto")
    parser.add_argument("--precision", choices=("auto", "f32", "bf16", "f16", "int8"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of a member on a CPU; 0: as its runtime thinks best")
    parser.add_argument("--set", choices=tuple(random_index.SETS), default="standard", help="networks (%(default)s)")
    parser.add_argument("--gallery", type=int, default=20_000, help="random vectors to search (%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images in a batch (%(default)s)")
    parser.add_argument("--batches", type=int, default=10, help="batches through the engine (%(default)s)")
    parser.add_argument("--repeats", type=int, default=10, help="of the forward passes (%(default)s)")
    parser.add_argument("--singles", type=int, default=50, help="images one at a time (%(default)s)")
    parser.add_argument("--side", type=int, default=448, help="width and height of the images (%(default)s)")
    parser.add_argument("--matrix", type=int, default=8192, help="side of the products (%(default)s)")
    parser.add_argument("--copy", type=int, default=1024, help="MiB copied (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bench-out/gpu"), help="(%(default)s)")
    args = parser.parse_args()
    share_out(Threads(inference=args.threads, images=1))
    result = measure(args)
    table(result)
    (args.out / "results.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
