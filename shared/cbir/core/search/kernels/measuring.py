"""Measuring: the ways to search are timed on the first rows of a gallery, in a few seconds at most."""

from __future__ import annotations

import logging
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cbir.core.search.kernels.half_product import HALVES, HalfProduct
from cbir.core.search.kernels.kept_choices import SCANS, Kept
from cbir.core.search.kernels.timing import BATCH, Contender, Search, Times, race, seconds_of
from cbir.core.search.kernels.trials import trial_queries
from cbir.core.search.matrices.cpu_matrix import CpuMatrix, MappedMatrix

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from cbir.core.search.product_quantisation_scan import QuantisedScan

__all__ = ["MIN_DEPTH", "SECONDS", "SIZES", "Scans", "measure"]

_log = logging.getLogger(__name__)

Floats = NDArray[np.float32]

#: Fewest rows that are listed by estimate; half of them are scored at first.
MIN_DEPTH = 256
#: Rows that are measured: few, to see what is hopeless; more; and so many that no cache of a processor holds them.
SIZES = (4096, 32768, 131072)
#: Rows beyond which the time of a scan grows evenly.
_SCANNED = 32768
#: Seconds that measuring takes, or somewhat more.
SECONDS = 3.0
#: Runs in which rows are scored, and rows that are listed, to see what a row takes.
_SCORED, _LISTED = 9, 4096
#: Losses of a core a second from which on a measurement was disturbed by other work.
_UNDISTURBED = 30


class Scans:
    """Trained scans of a gallery by components to a code, each made when it is first asked for."""

    def __init__(self, matrix: CpuMatrix) -> None:
        self._matrix = matrix
        self._trained: dict[int, QuantisedScan] = {}

    def __getitem__(self, components: int) -> QuantisedScan:
        if components not in self._trained:
            # Imported here because it loads FAISS, which products do not need.
            from cbir.core.search.product_quantisation_scan import SAMPLE_ROWS, QuantisedScan

            # Of a small gallery a quarter trains centroids that are as good, in less time while a reload waits.
            taught = min(SAMPLE_ROWS, max(MIN_DEPTH, len(self._matrix) // 4))
            sample = self._matrix.sample(slice(None, None, max(1, len(self._matrix) // taught)))
            self._trained[components] = QuantisedScan(sample, components)
        return self._trained[components]


def measure(matrix: CpuMatrix, weights: Floats, scans: Scans, seconds: float = SECONDS) -> Kept:
    """Time all ways to search, on the first rows of the gallery; what other work disturbed is not to last.

    Args:
        seconds: After which nothing is measured on more rows.
    """
    queries, _ = trial_queries(matrix, weights, BATCH)
    few = matrix.first(1)
    # What is compiled, loaded and trained first is not part of the measurement.
    for asked in (queries, queries[:1]):
        few.best(asked, 1)
        matrix.similarities(np.zeros((len(asked), 1), np.int64), asked)
    coded = scans[SCANS[0]]
    refused: set[str] = set()
    begun, switched = perf_counter(), _times_set_aside()
    sizes = tuple(sorted({min(size, len(matrix)) for size in SIZES}))
    by_tiles = False
    if isinstance(matrix, MappedMatrix):
        rows, tiles = matrix.first(sizes[0]), matrix.first(sizes[0])
        tiles.one_by_tiles = True
        by_tiles = seconds_of(lambda: tiles.best(queries[:1], 1)) < seconds_of(lambda: rows.best(queries[:1], 1))

    def product(size: int) -> Search:
        first = matrix.first(size)
        if isinstance(first, MappedMatrix):
            first.one_by_tiles = by_tiles
        return lambda asked: first.best(asked, min(size, MIN_DEPTH))

    def half(name: str, size: int) -> Search | None:
        if name == "f16" and not isinstance(matrix, MappedMatrix):
            return None
        rounded = HalfProduct(matrix, name, size)
        if size == sizes[0] and not _keeps_its_bound(rounded, matrix, queries):
            refused.add(name)
            _log.warning("products in %s are less exact on this machine than they must be: they are not used", name)
            return None
        return lambda asked: rounded.search(asked, min(size, MIN_DEPTH))

    def scan(size: int) -> Search:
        coded.code(matrix.sample(slice(size)))
        return lambda asked: coded.search(asked, min(size, MIN_DEPTH))

    contenders = {"product": Contender(product, SIZES[-1]), "scan": Contender(scan, _SCANNED)}
    contenders |= {name: Contender(partial(half, name), SIZES[-1]) for name in HALVES}
    one, batch = race(contenders, queries, sizes, begun + seconds)
    listed = _listing(coded, len(matrix), queries[:1]) if "scan" in one else 0.0
    rescored = _scoring(matrix, queries[:1]) + listed, _scoring(matrix, queries[:_SCORED]) + listed
    usable = set(contenders) - (set() if isinstance(matrix, MappedMatrix) else {"f16"}) - refused
    disturbed = _times_set_aside() - switched > _UNDISTURBED * (perf_counter() - begun) or not usable <= set(one)
    return Kept(Times(one, batch, rescored, listed), by_tiles, {}, not disturbed)


def _scoring(matrix: CpuMatrix, queries: Floats) -> float:
    """Seconds a row that is scored exactly: other rows each time, as rows that are asked for are in no cache."""
    random, seconds = np.random.default_rng(0), []
    for _ in range(_SCORED):
        rows = random.integers(0, len(matrix), (len(queries), MIN_DEPTH))
        begun = perf_counter()
        matrix.similarities(rows, queries)
        seconds.append(perf_counter() - begun)
    return float(np.median(seconds)) / (len(queries) * MIN_DEPTH)


def _listing(coded: QuantisedScan, count: int, query: Floats) -> float:
    """Seconds that a scan takes for each further row that it lists."""
    low, high = (min(count, depth) for depth in (MIN_DEPTH, _LISTED))
    if low == high:
        return 0.0
    coded_rows = seconds_of(lambda: coded.search(query, high)) - seconds_of(lambda: coded.search(query, low))
    return max(coded_rows, 0.0) / (high - low)


def _times_set_aside() -> int:
    """How often this process has lost its core to another, where the system counts it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource is not None else 0


def _keeps_its_bound(rounded: HalfProduct, matrix: CpuMatrix, queries: Floats) -> bool:
    """Whether all estimates are as near to the products as is claimed: libraries could add up in fewer bits."""
    exact = queries @ matrix.sample(slice(len(rounded))).T
    for part in (slice(1), slice(None)):
        rows, estimates = rounded.search(queries[part], len(rounded))
        off = np.abs(estimates - np.take_along_axis(exact[part], rows, axis=1)).max(axis=1)
        if not (off <= rounded.error(queries[part])).all():
            return False
    return True
