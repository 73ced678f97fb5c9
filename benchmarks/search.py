"""How close exact fused search comes to memory bandwidth: ``python benchmarks/search.py --rows 1000000``.

Draws a gallery of unit vectors for several members, writes it as the indexer does (float16 files, memory-mapped), loads
it, and measures in one process: the read bandwidth of this machine and, computed from it, the time to read the float16
matrix once (the floor); searches of one query and of batches, compared with FAISS's flat float32 and float16 indexes;
recall of the ten best compared with a float32 product; memory use; loading time.  Prints a table and writes JSON.
``clustered`` vectors are noisy copies of centres whose components decay like those of trained projections; ``random``
ones have no structure, which is the hardest case, as no vector is near another.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peak
import torch
from numpy.typing import NDArray

from cbir.core.artifacts import Gallery, GalleryImage
from cbir.core.images import Box
from cbir.core.machine import keep_compiled, machine_facts
from cbir.core.metric import Projection, normalise
from cbir.core.search import Retriever
from cbir.core.search.candidate_generation import CandidateGenerator
from cbir.core.search.kernels.prepared import PreparedKernel
from cbir.core.search.matrices.gallery_matrix import load_matrix
from cbir.core.vote import SearchSpec, VoteSettings, normalised_weights
from cbir.server.bench.figures.ratios import Ratio

Floats = NDArray[np.float32]

BLOCK = 65536
#: Share of the components for each member, and the members' weights.
SHARES, WEIGHTS = (0.4, 0.4, 0.2), (3.0, 2.0, 1.0)
#: Number of hits, and of candidates that are rescored.
HITS, POOL = 10, 128
#: Galleries of up to so many rows are also searched with the label vote.
VOTE_ROWS = 200_000
#: Milliseconds that are aimed at for a query alone and for each of a batch of 32, by kind, on two cores; they are those
#: of the default size.
AIMS = {"clustered": (8.0, 3.0), "random": (45.0, 6.0)}
AIMED_AT = (1_000_000, 640, 32)


class Vectors:
    """A gallery stored in files, and queries for it."""

    def __init__(self, kind: str, rows: int, dim: int, clusters: int, folder: Path, seed: int = 0) -> None:
        self.dims = [round(share * dim) for share in SHARES[:-1]]
        self.dims.append(dim - sum(self.dims))
        self._rng = np.random.default_rng(seed)
        self._kind = kind
        self._scales = [np.exp(-3 * np.arange(d) / d).astype(np.float32) for d in self.dims]
        self._centres = [self._rng.standard_normal((clusters, d), np.float32) for d in self.dims]
        files = [
            np.lib.format.open_memmap(folder / f"{m}.npy", "w+", np.float16, (rows, d)) for m, d in enumerate(self.dims)
        ]
        self.codes = self._rng.integers(0, clusters, rows)
        for start in range(0, rows, BLOCK):
            for file, part in zip(files, self._draw(self.codes[start : start + BLOCK]), strict=True):
                file[start : start + BLOCK] = part
        for file in files:
            file.flush()
        del files
        self.parts = [np.load(folder / f"{m}.npy", mmap_mode="r") for m in range(len(self.dims))]

    def _draw(self, codes: NDArray[np.int64]) -> list[Floats]:
        count = len(codes)
        if self._kind == "random":
            return [normalise(self._rng.standard_normal((count, d), np.float32)) for d in self.dims]
        return [
            normalise((c[codes] + self._rng.standard_normal((count, d), np.float32)) * s)
            for c, d, s in zip(self._centres, self.dims, self._scales, strict=True)
        ]

    def queries(self, count: int) -> Floats:
        """(count, dim) vectors from the same distribution as the gallery's, but not in it."""
        return np.hstack(self._draw(self._rng.integers(0, len(self._centres[0]), count)))


def main() -> int:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=640)
    parser.add_argument("--clusters", type=int, help="default: one for every hundred rows")
    parser.add_argument("--kinds", nargs="+", default=["clustered", "random"], choices=["clustered", "random"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kernel", default="auto", choices=["auto", "product", "scan", "bf16", "f16"])
    parser.add_argument("--queries", type=int, default=128, help="for recall, and for the batches that are timed")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--no-faiss", action="store_true", help="leave FAISS's indexes out: they take memory")
    parser.add_argument("--work", type=Path, help="folder for the gallery's files (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=Path("bench-out/search.json"))
    args = parser.parse_args()
    results: dict[str, Any] = {
        "rows": args.rows, "dim": args.dim, "device": args.device, "machine": machine_facts(),
        "torch": torch.__version__, "threads": torch.get_num_threads(),
    }  # fmt: skip
    if args.device != "cpu":
        results["accelerator"] = torch.cuda.get_device_name()
    for kind in args.kinds:
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            vectors = Vectors(kind, args.rows, args.dim, args.clusters or max(1, args.rows // 100), Path(folder))
            results[kind] = measure(vectors, args)
        show(kind, results[kind], args)
    if (args.rows, args.dim, args.batch, args.device) == (*AIMED_AT, "cpu"):
        results["ratios"] = [ratio for kind in args.kinds for ratio in ratios(kind, results[kind])]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def measure(vectors: Vectors, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one gallery; times in seconds."""
    queries = vectors.queries(args.queries)
    usual = normalised_weights(np.array(WEIGHTS, np.float32))
    weights = np.tile(usual, (len(queries), 1))
    sizes = args.rows * args.dim * 2
    # Loops are compiled and libraries loaded before anything is measured, as the server does when it is installed.
    keep_compiled()
    warm_up(args)
    held = resident()
    begun = time.perf_counter()
    matrix = load_matrix(vectors.parts, args.device)
    search = CandidateGenerator(matrix, usual, args.kernel)
    loaded = time.perf_counter() - begun

    def find(asked: slice) -> NDArray[np.int64]:
        part = queries[asked]
        shares = weights[asked]
        count = len(part)
        found = search.find(part, shares, [HITS] * count, [POOL] * count, [()] * count)
        scores = np.einsum("bmc,bm->bc", found.similarities, shares)
        scores[found.rows < 0] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, :HITS]
        return np.take_along_axis(found.rows, best, axis=1)

    batches = [slice(start, start + args.batch) for start in range(0, len(queries) - args.batch + 1, args.batch)]
    rows = np.concatenate([find(batch) for batch in [*batches, slice(batches[-1].stop, None)] if len(queries[batch])])
    result: dict[str, Any] = {
        "kernel": search.kernels.describe(),
        "load": loaded,
        "one": per_call(find, [slice(i, i + 1) for i in range(min(32, len(queries)))]),
        "batch, each": per_call(find, batches) / args.batch,
        "core seconds, batch, each": per_call(find, batches, time.process_time) / args.batch,
        "memory / float16 matrix": (resident() - held) / sizes,
    }
    if args.rows <= VOTE_ROWS:
        result["with label vote"] = with_labels(vectors, queries, batches, args)
    scaled = queries * np.repeat(weights, vectors.dims, axis=1)
    result["recall@10"] = recall(vectors, scaled, rows)
    result["bandwidth"] = bandwidth(args.device)
    result["floor"] = sizes / result["bandwidth"]
    result["least, one"] = least(search.kernels.one, 1, args, result["bandwidth"])
    result["least, batch, each"] = least(search.kernels.batch, args.batch, args, result["bandwidth"])
    if args.device == "cpu" and not args.no_faiss:
        for name in ("Flat", "SQfp16"):
            result[f"FAISS {name}"] = baseline(name, vectors, scaled, args)
    return result


def with_labels(vectors: Vectors, queries: Floats, batches: list[slice], args: argparse.Namespace) -> dict[str, float]:
    """Seconds of the whole ``Retriever.search``: label vote, ranks and explanations; every cluster is a label."""
    box = Box(0, 0, 1, 1)
    gallery = Gallery.from_images(
        GalleryImage(f"{i:08d}", f"/{i}", f"c{code}", 1, 1, f"{i:064x}", i, box) for i, code in enumerate(vectors.codes)
    )
    names = [f"m{m}" for m in range(len(vectors.dims))]
    vote = VoteSettings(dict(zip(names, WEIGHTS, strict=True)), label_share=1.0)
    projections = [Projection(np.zeros(d, np.float32), None, None) for d in vectors.dims]
    exact = [None] * len(names)
    retriever = Retriever(
        gallery, names, vectors.parts, projections, vote, exact, "exact", args.device, None, args.kernel
    )

    def search(place: slice) -> object:
        return retriever.search(queries[place], [SearchSpec(HITS)] * len(queries[place]))

    return {
        "one": per_call(search, [slice(i, i + 1) for i in range(min(32, len(queries)))]),
        "batch, each": per_call(search, batches) / args.batch,
        "core seconds, batch, each": per_call(search, batches, time.process_time) / args.batch,
    }


def per_call(
    call: Callable[[slice], object], places: list[slice], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median seconds of the calls, after one that is not counted."""
    call(places[0])
    times = []
    for place in places:
        begun = clock()
        call(place)
        times.append(clock() - begun)
    return float(np.median(times))


def recall(vectors: Vectors, scaled: Floats, rows: NDArray[np.int64]) -> float:
    """Share of the ten best of a float32 product over all rows that were found; equal scores count as found."""
    asked = torch.from_numpy(scaled)
    best = torch.full((len(scaled), HITS), -torch.inf)
    for start in range(0, len(vectors.parts[0]), BLOCK):
        block = np.hstack([np.asarray(part[start : start + BLOCK], np.float32) for part in vectors.parts])
        scores = asked @ torch.from_numpy(block).T
        best = torch.topk(torch.cat([best, scores], dim=1), HITS).values
    found = np.stack([
        np.hstack([np.asarray(part[own], np.float32) for part in vectors.parts]) @ query
        for own, query in zip(rows, scaled, strict=True)
    ])  # fmt: skip
    # A hit counts if its score is among the ten best, within the rounding of sums in another order.
    return float((found >= best[:, -1:].numpy() - 1e-6).mean())


def bandwidth(device: str) -> float:
    """Bytes per second: on a CPU the best of several reads of a large array, on a GPU of copies (read plus written)."""
    if device == "cpu":
        array = torch.ones(2**28)  # 1 GiB of float32
        array.sum()
        return array.nbytes / min(elapsed(array.sum) for _ in range(7))
    array = torch.ones(2**31, dtype=torch.uint8, device=device)
    target = torch.empty_like(array)

    def copy() -> None:
        target.copy_(array)
        torch.cuda.synchronize()

    copy()
    return 2 * array.nbytes / min(elapsed(copy) for _ in range(7))


def elapsed(call: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def baseline(factory: str, vectors: Vectors, scaled: Floats, args: argparse.Namespace) -> dict[str, float] | str:
    """FAISS's own exact search of the same vectors; times in seconds."""
    import faiss

    need = args.rows * args.dim * (4 if factory == "Flat" else 2)
    if need > 0.8 * available():
        return "left out: too little memory"
    index = faiss.index_factory(args.dim, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(scaled[:1])
    for start in range(0, args.rows, BLOCK):
        index.add(np.hstack([np.asarray(part[start : start + BLOCK], np.float32) for part in vectors.parts]))
    few = [slice(i, i + 1) for i in range(5)]
    return {
        "one": per_call(lambda place: index.search(scaled[place], HITS), few),
        "batch, each": per_call(lambda place: index.search(scaled[place], HITS), [slice(0, args.batch)]) / args.batch,
    }


def warm_up(args: argparse.Namespace) -> None:
    """Search a gallery of a few rows, so that libraries are loaded and their threads started."""
    rng = np.random.default_rng(0)
    parts = [normalise(rng.standard_normal((5000, 16), np.float32)).astype(np.float16)]
    one = np.ones(1, np.float32)
    kernel = "scan" if args.device == "cpu" else "product"
    search = CandidateGenerator(load_matrix(parts, args.device), one, kernel)
    search.find(np.asarray(parts[0][:64], np.float32), np.ones((64, 1), np.float32), [10] * 64, [128] * 64, [()] * 64)


def resident() -> int:
    """Bytes of memory that this process holds, mapped files included."""
    return _status(Path("/proc/self/status"), "VmRSS")


def available() -> int:
    """Bytes of memory that are available."""
    return _status(Path("/proc/meminfo"), "MemAvailable")


def _status(path: Path, key: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"{path} has no {key}: this benchmark needs Linux")


def least(kernel: PreparedKernel, queries: int, args: argparse.Namespace, bandwidth: float) -> float:
    """Seconds a query that a kernel takes at least: for its bytes to be read once, and for its products at their peak.

    A scan makes no products; what its tables cost is not counted.
    """
    if kernel.scan is not None:
        return args.rows * kernel.scan.groups / 2 / bandwidth / queries
    products = peak.matrix_rate(args.device, torch.bfloat16 if kernel.name == "bf16" else torch.float32, 1536)
    return max(2 * args.rows * args.dim / bandwidth / queries, 2 * args.rows * args.dim / products)


def ratios(kind: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures that have targets, in the form of the bench's ratios."""
    how = f"{result['kernel']}; limit: reading once what the kernel reads, and its products at their peak"
    if isinstance(flat := result.get("FAISS Flat"), dict):
        how += f"; FAISS Flat {1e3 * flat['one']:.0f} and {1e3 * flat['batch, each']:.1f} ms"
    rows = []
    for part, name, aim in zip(("one", "batch, each"), ("one query", "32 together, each"), AIMS[kind], strict=True):
        limit = 1e3 * result[f"least, {part}"]
        rows.append(Ratio(f"exact search, {kind}: {name}, ms", 1e3 * result[part], aim, True, how, limit))
    rows.append(Ratio(
        f"exact search, {kind}: recall@10", result["recall@10"], 1.0, False, "against a float32 product"
    ))  # fmt: skip
    return [row.to_json() for row in rows]


def show(kind: str, result: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the table of one gallery; times in milliseconds."""
    floor = result["floor"]
    print(f"\n{kind}, {args.rows:,} x {args.dim}, {args.device}: {result['kernel']}")
    print(f"read bandwidth {result['bandwidth'] / 1e9:.1f} GB/s; floor {1000 * floor:.2f} ms; ", end="")
    print(f"loaded in {result['load']:.1f} s; memory {result['memory / float16 matrix']:.2f} of the float16 matrix; ")
    print(f"recall@10 {result['recall@10']:.4f}\n")
    print(f"| | one query, ms | floor / time | batch of {args.batch}, ms each | core ms |")
    print("| --- | --- | --- | --- | --- |")
    lines = [("exact fused search", result)]
    lines += [(name, figures) for name, figures in result.items() if name.startswith(("with", "FAISS"))]
    for name, figures in lines:
        if isinstance(figures, str):
            print(f"| {name} | {figures} | | | |")
            continue
        core = figures.get("core seconds, batch, each")
        print(
            f"| {name} | {1000 * figures['one']:.3f} | {floor / figures['one']:.2f} "
            f"| {1000 * figures['batch, each']:.3f} | {'' if core is None else f'{1000 * core:.3f}'} |",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
