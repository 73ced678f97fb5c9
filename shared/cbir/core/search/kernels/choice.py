"""The choice of kernels: measured on this machine, with this gallery, or taken from what an earlier start measured.

The time of a search is that of its estimates plus that of scoring the rows that they leave open.  The first depends on
the machine and is timed (:mod:`.timing`); the second depends on the gallery and is counted on trial queries
(:mod:`.trials`), in a gallery without structure as in any other.

N rows, M members.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cbir.core.machine import NOTICED_MS, available_bytes, compute_alone
from cbir.core.search.kernels.half_product import HALVES, HalfProduct
from cbir.core.search.kernels.kept_choices import SCANS, Choice, gallery_digest, keep, machine_key, read
from cbir.core.search.kernels.measuring import MIN_DEPTH, SECONDS, SIZES, Scans, measure
from cbir.core.search.kernels.timing import BATCH, Times
from cbir.core.search.kernels.trials import Trials
from cbir.core.search.matrices.cpu_matrix import CpuMatrix, MappedMatrix

if TYPE_CHECKING:
    from cbir.core.search.product_quantisation_scan import QuantisedScan

__all__ = [
    "MIN_DEPTH",
    "MIN_MEASURED",
    "Chosen",
    "Kernel",
    "choose_kernels",
    "forced_kernel",
    "key_of",
    "most_scored",
    "scan_share",
    "suffices_alone",
]

_log = logging.getLogger(__name__)

Floats = NDArray[np.float32]

#: How estimates are made: by the product with all rows, in half precision, by a scan of codes, or as is fastest.
Kernel = Literal["auto", "product", "scan", "bf16", "f16"]

#: Galleries of fewer components use the product: there is nothing to gain, and it needs neither codes nor measuring.
MIN_MEASURED = 2**20
#: Seconds for which one thread is measured, which may turn out too few.
_BRIEFLY = 1.0
#: The share of the free memory that a copy in half precision may take.
_COPY_SHARE = 0.5
#: How many times as fast as all others a kernel must be that takes one.
_WORTH_A_COPY = 1.25


@dataclass(frozen=True)
class Chosen:
    """A choice, and what it was made by.

    Attributes:
        times: What was measured; None where the kernel was not chosen but said.
        scan: A trained scan of no rows yet; None where none was chosen.
        alone: It was made for a search by one thread.
    """

    choice: Choice
    times: Times | None
    scan: QuantisedScan | None
    alone: bool = False


def choose_kernels(matrix: CpuMatrix, weights: Floats) -> Chosen:
    """Choose the kernels for one query and for a batch.

    Args:
        weights: (M,) usual weights of the members.
    """
    # First on one thread, which is all that a search gets where more cannot save a millisecond of it.
    scans = Scans(matrix)
    undo = compute_alone()
    try:
        alone = _measured_choice(matrix, weights, scans, _BRIEFLY, NOTICED_MS / 1000)
    finally:
        undo()
    if alone is not None and suffices_alone(alone.choice):
        return replace(alone, alone=True)
    chosen = _measured_choice(matrix, weights, scans, SECONDS)
    assert chosen is not None
    return chosen


def suffices_alone(choice: Choice) -> bool:
    """Whether a choice that was made for one thread holds: there are no more, or they could not save enough."""
    return choice.costs[choice.one][0] <= NOTICED_MS or torch.get_num_threads() == 1


def _measured_choice(
    matrix: CpuMatrix, weights: Floats, scans: Scans, seconds: float, longest: float = math.inf
) -> Chosen | None:
    """The choice for as many threads as this one may use now.

    Args:
        seconds: That measuring may take, where nothing is kept.
        longest: Seconds for one query; None is returned where no way to search can be that fast.
    """
    begun = perf_counter()
    key = key_of(len(matrix), matrix.stops, matrix.stored, torch.get_num_threads())
    digest = gallery_digest(matrix.vectors_of, len(matrix), weights)
    known, told = read(key), "known from earlier"
    kept = known
    if kept is None:
        kept = measure(matrix, weights, scans, seconds, longest)
        told = "measured" if kept.lasting else "measured beside other work, so not kept"
    if isinstance(matrix, MappedMatrix):
        matrix.one_by_tiles = kept.by_tiles
    scans.arrange(kept.block)
    # A scan is timed with the longest codes: others take as long or longer, and rows are still to be scored.
    if len(matrix) * min(kept.times.one.values()) > longest:
        if known is None:
            keep(key, kept, digest, None)
        return None
    choice = kept.galleries.get(digest)
    if choice is None or not _is_usable(choice, matrix):
        choice = _choose(matrix, weights, kept.times, scans)
        keep(key, kept, digest, choice)
    _log.info(
        "search of %d x %d with %d threads: one query by %s, %d by %s (ms a query: %s); %s, in %.1f s", len(matrix),
        matrix.stops[-1], torch.get_num_threads(), choice.one, BATCH, choice.batch,
        ", ".join(f"{name} {one:.3g} and {batch:.3g}" for name, (one, batch) in choice.costs.items()),
        told, perf_counter() - begun,
    )  # fmt: skip
    return Chosen(choice, kept.times, scans[choice.components] if choice.components else None)


def forced_kernel(matrix: CpuMatrix, weights: Floats, kernel: str) -> Chosen:
    """One kernel for all queries, measured or not; ``f16`` is the product where the rows are not float16."""
    depth = min(MIN_DEPTH, len(matrix))
    if kernel != "scan":
        there = kernel != "f16" or isinstance(matrix, MappedMatrix)
        name = kernel if there else "product"
        return Chosen(Choice(name, name, 0, depth, {}), None, None)
    scans, most = Scans(matrix), most_scored(None, len(matrix), 1)
    trials = Trials.of(matrix, weights, most)
    for components in SCANS:
        needed = trials.needed(scans[components].estimates(trials.near, trials.queries))
        depth = _depth(needed, most)
        if np.quantile(needed, 0.9) <= MIN_DEPTH // 2:
            break
    return Chosen(Choice("scan", "scan", components, min(depth, len(matrix)), {}), None, scans[components])


def key_of(count: int, stops: Sequence[int], stored: str, threads: int) -> dict[str, object]:
    """The key under which the times of a matrix of ``count`` rows are kept, by how these are stored."""
    return machine_key(min(count, SIZES[-1]), stops, stored, threads)


def _choose(matrix: CpuMatrix, weights: Floats, times: Times, scans: Scans) -> Choice:
    count = len(matrix)
    # To score more rows than this takes longer than a product with all.
    most = most_scored(times, count, 1)
    trials = Trials.of(matrix, weights, most)
    ways = {"product": _costs(times, "product", count, np.full(1, MIN_DEPTH // 2), math.inf)}
    for name in HALVES:
        if name in times.one and _fits(matrix, name):
            errors = HalfProduct(matrix, name, min(count, SIZES[0])).error(trials.queries)
            ways[name] = _costs(times, name, count, np.maximum(trials.needed_with(errors), MIN_DEPTH // 2), most)
    best: tuple[float, int, int] | None = None
    for components in SCANS if "scan" in times.one else ():
        share = scan_share(components)
        bare = [count * share * times.of("scan", queries) for queries in (1, BATCH)]
        if all(b > min(w[i] for w in ways.values()) for i, b in enumerate(bare)):
            continue
        needed = trials.needed(scans[components].estimates(trials.near, trials.queries))
        for depth in _depths(needed, min(most, count)):
            costs = _scan_costs(times, count, needed, most, share, depth)
            if best is None or sum(costs) < best[0]:
                best = sum(costs), components, min(depth, count)
                ways["scan"] = costs
        if np.quantile(needed, 0.9) <= MIN_DEPTH // 2:
            break
    # A copy of the gallery takes memory, so it must be worth it.
    one, batch = (min(ways, key=lambda name: ways[name][i] * (_WORTH_A_COPY if name == "bf16" else 1)) for i in (0, 1))
    costs_ms = {name: (1000 * pair[0], 1000 * pair[1]) for name, pair in ways.items()}
    if best is None or "scan" not in (one, batch):
        return Choice(one, batch, 0, min(MIN_DEPTH, count), costs_ms)
    return Choice(one, batch, best[1], best[2], costs_ms)


def _depth(needed: NDArray[np.integer], most: int) -> int:
    """Rows to list at first: twice as many as most trials need, as a second round costs more than some rows."""
    return int(np.clip(2 ** np.ceil(np.log2(2 * np.quantile(needed, 0.9))), MIN_DEPTH, max(most, MIN_DEPTH)))


def _depths(needed: NDArray[np.integer], most: int) -> list[int]:
    """Rows that may be listed at first: from the fewest to twice as many as any trial needs."""
    depths = [MIN_DEPTH]
    while depths[-1] < min(2 * int(needed.max()), most):
        depths.append(2 * depths[-1])
    return depths


def most_scored(times: Times | None, count: int, queries: int) -> int:
    """The most rows whose scores take no longer than a product with all; an eighth where nothing was timed."""
    if times is None:
        return min(count, max(MIN_DEPTH, count // 8))
    return min(count, max(MIN_DEPTH, int(count * times.of("product", queries) / times.rescoring(queries))))


def scan_share(components: int) -> int:
    """How many times as long a scan takes as the one that is timed: as many as its codes are longer."""
    return SCANS[0] // components


def _costs(times: Times, way: str, count: int, needed: NDArray[np.integer], most: float) -> tuple[float, float]:
    """Seconds a query that a search takes by itself and in a batch, for so many rows to score in (T,) trials.

    Where more than ``most`` rows would be left open, a product with all follows.
    """
    failed = float((needed >= most).mean())
    one, batch = (
        count * (times.of(way, queries) + failed * times.of("product", queries))
        + times.rescoring(queries) * float(np.minimum(needed, most).mean())
        for queries in (1, BATCH)
    )
    return one, batch


def _scan_costs(
    times: Times, count: int, needed: NDArray[np.integer], most: float, share: int, depth: int
) -> tuple[float, float]:
    """As :func:`_costs`, for a scan that lists ``depth`` rows at first and scores half of them.

    Trials that need more have a second round, and those that need more than are listed a longer list.
    """
    first, short = depth // 2, float((needed > depth).mean())
    failed = float((needed >= most).mean())
    scored = np.where(needed <= first, first, np.where(needed <= depth, needed, np.maximum(needed, 2 * depth)))
    rows, again = float(np.minimum(scored, most).mean()), float((needed > first).mean())
    one, batch = (
        count * ((1 + short) * share * times.of("scan", queries) + failed * times.of("product", queries))
        + times.listed * depth * (1 + 4 * short)
        # A further round takes as long as scoring some hundred rows, which the queries of a batch share.
        + (times.rescoring(queries) - times.listed) * (rows + again * MIN_DEPTH / queries)
        for queries in (1, BATCH)
    )
    return one, batch


def _is_usable(choice: Choice, matrix: CpuMatrix) -> bool:
    """Whether a choice that was kept can still be followed."""
    names = {choice.one, choice.batch}
    return (
        choice.depth <= len(matrix)
        and ("f16" not in names or isinstance(matrix, MappedMatrix))
        and ("bf16" not in names or _fits(matrix, "bf16"))
    )


def _fits(matrix: CpuMatrix, name: str) -> bool:
    """Whether there is memory for the copy that a kernel makes."""
    if name == "f16":
        return True
    free = available_bytes()
    return free is None or len(matrix) * matrix.stops[-1] * 2 <= _COPY_SHARE * free
