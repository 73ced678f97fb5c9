"""``cbir bench search``: how fast a large gallery is written, loaded and searched, by kinds of index.

A gallery of drawn vectors is published as any other.  Then each kind of index is built, and loaded and asked in a
process of its own on one core: what it takes of memory, what a query takes, and how many of the ten best images by the
fused score of exact products it finds.

N images, M members, D components of all members.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cbir.core.artifacts import IndexStore
from cbir.core.ensemble import member_fingerprint
from cbir.core.machine import keep_compiled, machine_facts
from cbir.core.metric import normalise
from cbir.core.vector_index import build_index, choose_index, index_file, load_index
from cbir.core.vote import VoteSettings
from cbir.indexer.bench.aims import search_ratios
from cbir.indexer.bench.drawn_gallery import DrawnGallery, DrawnVectors, drawn_ensemble, drawn_queries
from cbir.indexer.build import KeptRows, VersionContent, write_version

__all__ = ["SearchPlan", "measure_search"]

Floats = NDArray[np.float32]

HITS = 10
#: Candidates whose sums are computed in double precision: products in float32 mistake the order of sums that differ by
#: a few units of their last place, and would count a right answer as wrong.
_CLOSE = 32
#: Images that are added, and removed, when the cost of a small change is measured.
CHANGED = 1000


@dataclass(frozen=True)
class SearchPlan:
    """What is measured.

    Attributes:
        images: N.
        members: M.
        dim: Components of each member.
        kinds: Names of indexes, as in an ensemble file; ``exact`` is the fused scan of all rows.
        queries: Number of queries.
        change: Also measure adding and removing a thousand images.
    """

    images: int
    members: int
    dim: int
    kinds: tuple[str, ...]
    queries: int
    seed: int
    work: Path
    change: bool = True


def measure_search(plan: SearchPlan, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; return a document for JSON."""
    document: dict[str, Any] = {"machine": machine_facts(), "plan": {**vars(plan), "work": str(plan.work)}}
    shutil.rmtree(plan.work, ignore_errors=True)
    index = plan.work / "index"
    say(f"publish {plan.images:,} x {plan.members} x {plan.dim}")
    document["publish"] = _alone(_publish, plan, index)
    say("the ten best by exact products")
    queries = drawn_queries(plan.members, plan.images, plan.dim, plan.seed, plan.queries)
    found = _alone(_best, index, queries)
    document["floor"] = found["floor"]
    document["kinds"] = []
    for kind in plan.kinds:
        say(f"build {kind}")
        folder = plan.work / "kind"
        built = _alone(_build, index, kind, folder)
        say(f"ask {kind}")
        told = _alone(_ask, index, kind, folder, queries, found["rows"])
        document["kinds"].append({"kind": kind, **built, **told})
        shutil.rmtree(folder, ignore_errors=True)
    chosen = choose_index(plan.images, [plan.dim] * plan.members)[0]
    document["auto"] = {"kind": chosen.name, "why": chosen.why}
    if plan.change:
        say(f"add {CHANGED}, remove {CHANGED}")
        document["change"] = _alone(_change, plan, index)
    document["ratios"] = search_ratios(document)
    return document


def _alone(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call in a new process, so that its memory is its own; as in the commands, compiled loops are kept."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_called, function, *arguments).result()


def _called(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    keep_compiled()
    # What loads its parts when it is first used: an indexer that publishes has used both since it embedded.
    pa.array(normalise(np.ones((1, 1), np.float32))[0])
    return function(*arguments)


def _content(plan: SearchPlan, numbers: NDArray[np.int64], kept: KeptRows | None = None) -> VersionContent:
    ensemble = drawn_ensemble(plan.members, plan.dim)
    vectors = {m.name: DrawnVectors(i, plan.images + CHANGED, plan.dim, plan.seed)
               for i, m in enumerate(ensemble.members)}  # fmt: skip
    return VersionContent(
        DrawnGallery(numbers, *((kept.live, kept.rows) if kept is not None else ())), ensemble,
        lambda member: _Picked(vectors[member], numbers),
        {m.name: member_fingerprint(m, ensemble.crop) for m in ensemble.members},
        VoteSettings({m.name: 1.0 for m in ensemble.members}), device="cpu", kept=kept,
    )  # fmt: skip


class _Picked:
    """The vectors of some images."""

    def __init__(self, vectors: DrawnVectors, numbers: NDArray[np.int64]) -> None:
        self._vectors, self._numbers = vectors, numbers
        self.shape = (len(numbers), vectors.shape[1])

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, rows: Any) -> Floats:
        return self._vectors[self._numbers[rows]]


def _publish(plan: SearchPlan, index: Path) -> dict[str, Any]:
    store = IndexStore(index)
    begun = perf_counter()
    with store.lock():
        write_version(store.begin(), _content(plan, np.arange(plan.images)), lambda progress: None)
    return {"seconds": perf_counter() - begun, "peak_mib": _peak_mib()}


def _change(plan: SearchPlan, index: Path) -> dict[str, Any]:
    """Publish again with images added at the end and others removed from all over."""
    store = IndexStore(index)
    live = store.open()
    gone = np.random.default_rng(plan.seed).choice(plan.images, CHANGED, replace=False)
    numbers = np.delete(np.arange(plan.images + CHANGED), gone)
    rows = np.where(numbers < plan.images, numbers, -1)
    begun = perf_counter()
    with store.lock():
        kept = KeptRows(live, rows, 2 * CHANGED)
        version = write_version(store.begin(), _content(plan, numbers, kept), lambda progress: None)
    seconds = perf_counter() - begun
    gallery = version.gallery
    there = [f"{number:012}" for number in gone[:100].tolist() if gallery_holds(gallery, f"{number:012}")]
    return {"seconds": seconds, "peak_mib": _peak_mib(), "images": len(numbers), "removed_still_there": len(there)}


def gallery_holds(gallery: Any, name: str) -> bool:
    """Whether an id is in a gallery."""
    from cbir.core.errors import UnknownImageError

    try:
        gallery.row(name)
    except UnknownImageError:
        return False
    return True


def _best(index: Path, queries: Floats) -> dict[str, Any]:
    """(B, 10) rows with the largest sums of the members' exact products, and the time to read all vectors once.

    Exact are the products with the stored vectors, which are rounded to float16.
    """
    import torch

    version = IndexStore(index).open()
    members = [m.name for m in version.manifest.ensemble.members]
    parts = [version.embeddings(name) for name in members]
    width = parts[0].shape[1]
    rows = np.empty((len(queries), 0), np.int64)
    scores = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(parts[0]), 65_536):
        block = np.concatenate([part[start : start + 65_536] for part in parts], axis=1).astype(np.float32)
        values, places = torch.topk(torch.from_numpy(queries) @ torch.from_numpy(block).T, min(_CLOSE, len(block)))
        rows = np.concatenate([rows, places.numpy() + start], axis=1)
        scores = np.concatenate([scores, values.numpy()], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :_CLOSE]
        rows, scores = np.take_along_axis(rows, best, 1), np.take_along_axis(scores, best, 1)
    exact = np.stack([
        np.concatenate([part[close] for part in parts], axis=1).astype(np.float64) @ query
        for close, query in zip(rows, queries.astype(np.float64), strict=True)
    ])  # fmt: skip
    rows = np.take_along_axis(rows, np.argsort(-exact, axis=1, kind="stable")[:, :HITS], 1)
    buffer = np.ones(2**26, np.float32)
    seconds = min(_timed(buffer.sum) for _ in range(5))
    bandwidth = buffer.nbytes / seconds
    size = sum(part.nbytes for part in parts)
    return {
        "rows": rows,
        "floor": {"read_gb_s": bandwidth / 1e9, "matrix_ms": 1000 * size / bandwidth, "width": width * len(members)},
    }


def _build(index: Path, kind: str, folder: Path) -> dict[str, Any]:
    version = IndexStore(index).open()
    file, size = index_file(kind), 0
    begun = perf_counter()
    if file is not None:
        for member in version.manifest.ensemble.members:
            (folder / member.name).mkdir(parents=True)
            build_index(kind, version.embeddings(member.name), folder / member.name / file)
            size += (folder / member.name / file).stat().st_size
    return {"build_seconds": perf_counter() - begun, "build_peak_mib": _peak_mib(), "file_mib": size / 2**20}


def _ask(index: Path, kind: str, folder: Path, queries: Floats, best: NDArray[np.int64]) -> dict[str, Any]:
    """Load and search on one core."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-1:])
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    from cbir.core.search import Retriever
    from cbir.core.vote import SearchSpec

    version = IndexStore(index).open()
    members = [m.name for m in version.manifest.ensemble.members]
    file = index_file(kind)
    before = _memory()
    begun = perf_counter()
    embeddings = [version.embeddings(name) for name in members]
    indexes = [
        None if file is None else load_index(kind, folder / name / file, vectors, "cpu")
        for name, vectors in zip(members, embeddings, strict=True)
    ]
    retriever = Retriever(
        version.gallery, members, embeddings, [version.projection(name) for name in members], version.vote, indexes,
        kind, "cpu",
    )  # fmt: skip
    loaded = perf_counter() - begun
    spec = [SearchSpec(limit=HITS)]
    for query in queries[:5]:
        retriever.search(query[None], spec)
    seconds, busy, hits = [], [], 0
    for query, wanted in zip(queries, best, strict=True):
        begun, before_it = perf_counter(), process_time()
        ranking = retriever.search(query[None], spec)[0]
        seconds.append(perf_counter() - begun)
        busy.append(process_time() - before_it)
        hits += len({*ranking.rows.tolist()} & {*wanted.tolist()})
    after = _memory()
    return {
        "load_seconds": loaded,
        "own_mib": after["RssAnon"] - before["RssAnon"],
        "mapped_mib": after["RssFile"] - before["RssFile"],
        "p50_ms": 1000 * float(np.percentile(seconds, 50)),
        "p95_ms": 1000 * float(np.percentile(seconds, 95)),
        # What other processes take of the core does not count here, though what they do to its caches does.
        "cpu_ms": 1000 * float(np.percentile(busy, 50)),
        "recall": hits / best.size,
    }


def _timed(work: Callable[[], object]) -> float:
    begun = perf_counter()
    work()
    return perf_counter() - begun


def _memory() -> dict[str, float]:
    """Memory of this process in MiB: its own, and mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    cells = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return {name: int(cells[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
