"""Whether a gallery is scanned, with codes of which length, and how deep a scan must look: by trial searches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cbir.core.search.cpu_matrix import CpuMatrix
from cbir.core.search.early_termination_bound import bound_the_rest, nth_best, padded_rows

if TYPE_CHECKING:
    from cbir.core.search.product_quantisation_scan import QuantisedScan

__all__ = ["MIN_SCAN_DEPTH", "choose_scan", "max_scan_depth"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: The least number of estimates that are looked at, and the share of all rows from which a product is the faster.
MIN_SCAN_DEPTH, _MAX_DEPTH_DIVISOR = 256, 8
#: The rows with the worst codes that are remembered: so many, or this share of all.
_WORST_ROWS, _WORST_SHARE = 256, 1000
#: Gallery images that are asked for, to learn how deep a scan must look.
_TRIALS = 16
#: Nanoseconds of one core with AVX2: for a group of components of a row in a scan, for a component of a row in a
#: product (of a batch), and for a component of a candidate that is scored, widened already or not.  Their ratios count.
_SCAN_COST, _PRODUCT_COST, _WIDENED_COST, _HALF_COST = 0.026, 0.05, 0.2, 0.8


def max_scan_depth(count: int) -> int:
    """The most estimates of a gallery of ``count`` rows that a scan is worth asking for."""
    return min(count, max(MIN_SCAN_DEPTH, count // _MAX_DEPTH_DIVISOR))


def choose_scan(matrix: CpuMatrix, weights: Floats, *, insist: bool) -> tuple[QuantisedScan | None, int]:
    """Choose between codes of several lengths, and a product, by what a search for the gallery's own images costs.

    Long codes cost time for every row, short ones for the rows that must be scored because of their errors.

    Args:
        weights: (M,) usual weights of the members.
        insist: Choose no product.

    Returns:
        A scan of all rows, None where a product is the faster; and how many estimates a query needs at first.
    """
    # Here and not above: who only multiplies does without FAISS.
    from cbir.core.search.product_quantisation_scan import SAMPLE_ROWS, QuantisedScan

    count, width = len(matrix), matrix.stops[-1]
    asked = np.linspace(0, count - 1, min(count, _TRIALS)).astype(np.int64)
    queries = matrix.vectors_of(asked) * np.repeat(weights, np.diff(matrix.stops))
    most = max_scan_depth(count)
    rows, products = matrix.best(queries, most)
    best: QuantisedScan | None = None
    depth = MIN_SCAN_DEPTH
    least_cost = np.inf if insist else count * width * _PRODUCT_COST
    near = slice(0, MIN_SCAN_DEPTH // 2)
    vectors = matrix.vectors_of(rows[:, near].ravel()).reshape(len(queries), -1, width)
    # A quarter of a small gallery teaches codes as good, and a reload waits for them.
    taught = min(SAMPLE_ROWS, max(MIN_SCAN_DEPTH, count // 4))
    sample = matrix.sample(slice(None, None, max(1, count // taught)))
    for components in (8, 4, 2):
        scan = QuantisedScan(sample, components)
        least = _least_score(products[:, near], rows[:, near], scan.estimates(vectors, queries), min(count, 10))
        found = np.count_nonzero(products >= least[:, None], axis=1)
        needed = max(float(np.quantile(found, 0.9)), MIN_SCAN_DEPTH / 2)
        cost = count * scan.groups * _SCAN_COST + needed * width * (_WIDENED_COST if matrix.widened else _HALF_COST)
        # Where no list is long enough, a product is what will be made in the end.
        cost += (needed >= most) * count * width * _PRODUCT_COST
        if cost < least_cost:
            # Queries are less like the gallery's images than these are like each other.
            depth = int(np.clip(2 ** np.ceil(np.log2(2 * needed)), MIN_SCAN_DEPTH, most))
            best, least_cost = scan, cost
        if needed <= MIN_SCAN_DEPTH / 2:
            break
    if best is not None:
        best.fill(matrix, weights, max(_WORST_ROWS, count // _WORST_SHARE))
        # From now on only candidates are read.
        matrix.release()
    return best, depth


def _least_score(products: Floats, rows: Rows, estimates: Floats, hits: int) -> Floats:
    """(B,) the score below which nothing can be among the ``hits`` best, going by the errors of these estimates."""
    count, fused = len(rows), products.copy()
    # Where all there is was scored, the bound on the rest is the errors' margin above the lowest estimate.
    lowest = estimates.min(axis=1)
    want, width = np.full(count, hits), np.full(count, rows.shape[1])
    _, bound, _ = bound_the_rest(fused, rows.copy(), estimates, lowest, width, want, padded_rows([()] * count))
    least: Floats = nth_best(fused, want) - (bound - lowest)
    return least
