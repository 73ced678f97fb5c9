"""Measuring: the ways to search are timed on the first rows of a gallery, in a few seconds at most."""

from __future__ import annotations

import logging
import math
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import Waiting
from cbir.core.search.kernels.half_product import HALVES, HalfProduct
from cbir.core.search.kernels.kept_choices import BLOCKS, SCANS, Kept
from cbir.core.search.kernels.timing import BATCH, Contender, Search, Times, race, seconds_of
from cbir.core.search.kernels.trials import trial_queries
from cbir.core.search.matrices.cpu_matrix import CpuMatrix, MappedMatrix

if TYPE_CHECKING:
    from cbir.core.search.product_quantisation_scan import QuantisedScan

__all__ = ["MIN_DEPTH", "SECONDS", "SIZES", "Scans", "measure"]

_log = logging.getLogger(__name__)

Floats = NDArray[np.float32]

#: Fewest rows that are listed by estimate; half of them are scored at first.
MIN_DEPTH = 256
#: Rows that are measured: few, to see what is hopeless; more; and so many that no cache of a processor holds them.
SIZES = (4096, 32768, 131072)
#: Seconds that measuring takes, or somewhat more.
SECONDS = 1.5
#: Runs in which rows are scored, and rows that are listed, to see what a row takes.
_SCORED, _LISTED = 9, 4096
#: Rows whose codes are made to be timed; over and over again where more are timed.
_CODED = 8192


class Scans:
    """Trained scans of a gallery by components to a code, each made when it is first asked for."""

    def __init__(self, matrix: CpuMatrix) -> None:
        self._matrix, self._block = matrix, BLOCKS[0]
        self._trained: dict[int, QuantisedScan] = {}

    def __getitem__(self, components: int) -> QuantisedScan:
        if components not in self._trained:
            # Imported here because it loads FAISS, which products do not need.
            from cbir.core.search.product_quantisation_scan import SAMPLE_ROWS, QuantisedScan

            # Of a small gallery a quarter trains centroids that are as good, in less time while a reload waits.
            taught = min(SAMPLE_ROWS, max(MIN_DEPTH, len(self._matrix) // 4))
            sample = self._matrix.sample(slice(None, None, max(1, len(self._matrix) // taught)))
            self._trained[components] = QuantisedScan(sample, components, self._block)
        return self._trained[components]

    def arrange(self, block: int) -> None:
        """Lay codes out in blocks of so many rows."""
        self._block = block
        for scan in self._trained.values():
            scan.arrange(block)

    def measured_block(self, codes: NDArray[np.uint8], queries: Floats) -> int:
        """The layout of codes that is searched fastest, by one query and by all of (B, D) queries together."""
        scan, depth = self[SCANS[0]], min(len(codes), MIN_DEPTH)

        def took(block: int) -> float:
            self.arrange(block)
            scan.hold(codes)
            # Those of a batch are many: what counts is what a query takes.
            one, batch = (seconds_of(partial(scan.search, asked, depth)) for asked in (queries[:1], queries))
            return one + batch / len(queries)

        best = min(BLOCKS, key=took)
        self.arrange(best)
        return best


def measure(
    matrix: CpuMatrix, weights: Floats, scans: Scans, seconds: float = SECONDS, longest: float = math.inf
) -> Kept:
    """Time all ways to search, on the first rows of the gallery; what other work disturbed is not to last.

    Args:
        seconds: After which nothing is measured on more rows.
        longest: Seconds for one query; nothing is measured on more rows where all ways take twice as long.
    """
    queries, _ = trial_queries(matrix, weights, BATCH)
    few = matrix.first(1)
    # What is compiled, loaded and trained first is not part of the measurement.
    for asked in (queries, queries[:1]):
        few.best(asked, 1)
        matrix.similarities(np.zeros((len(asked), 1), np.int64), asked)
    refused: set[str] = set()
    begun, waited = perf_counter(), Waiting()
    coded = scans[SCANS[0]]
    codes = coded.encode(matrix.sample(slice(_CODED)))
    block = scans.measured_block(codes, queries)
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
        # How long a scan takes does not depend on the codes, and to make them takes longer.
        coded.hold(np.resize(codes, (size, codes.shape[1])))
        return lambda asked: coded.search(asked, min(size, MIN_DEPTH))

    # The product follows wherever another way fails, so that all depends on what it takes, with all threads.
    contenders = {"product": Contender(product, SIZES[-1], SIZES[1]), "scan": Contender(scan, SIZES[-1])}
    contenders |= {name: Contender(partial(half, name), SIZES[-1]) for name in HALVES}
    hopeless = 2 * longest / len(matrix)
    one, batch = race(contenders, queries, sizes, begun + seconds, stop=lambda each: min(each.values()) > hopeless)
    listed = _listing(coded, len(matrix), queries[:1]) if "scan" in one else 0.0
    rescored = _scoring(matrix, queries[:1]) + listed, _scoring(matrix, queries[:_SCORED]) + listed
    usable = set(contenders) - (set() if isinstance(matrix, MappedMatrix) else {"f16"}) - refused
    lasting = not waited.is_much() and usable <= set(one)
    return Kept(Times(one, batch, rescored, listed), by_tiles, {}, lasting, block)


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


def _keeps_its_bound(rounded: HalfProduct, matrix: CpuMatrix, queries: Floats) -> bool:
    """Whether all estimates are as near to the products as is claimed: libraries could add up in fewer bits."""
    exact = queries @ matrix.sample(slice(len(rounded))).T
    for part in (slice(1), slice(None)):
        rows, estimates = rounded.search(queries[part], len(rounded))
        off = np.abs(estimates - np.take_along_axis(exact[part], rows, axis=1)).max(axis=1)
        if not (off <= rounded.error(queries[part])).all():
            return False
    return True
