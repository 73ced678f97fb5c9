"""Scan tuning: when a gallery is loaded, trial searches decide between scan and product, and set up the scan.

They choose the length of the codes and the depth: how many rows, by falling estimate, a search lists at first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cbir.core.search.early_termination_bound import bound_the_rest, nth_best, padded_rows
from cbir.core.search.matrices.cpu_matrix import CpuMatrix

if TYPE_CHECKING:
    from cbir.core.search.product_quantisation_scan import QuantisedScan

__all__ = ["MIN_SCAN_DEPTH", "choose_scan", "max_scan_depth"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Fewest rows that a scan lists; where it would have to list more than N / 8, the product is faster.
MIN_SCAN_DEPTH, _MAX_DEPTH_DIVISOR = 256, 8
#: Most rows whose large quantisation errors are recorded: 256, or N / 1000 where that is more.
_WORST_ROWS, _WORST_DIVISOR = 256, 1000
#: Trial searches, each for an image of the gallery.
_TRIALS = 16
#: Nanoseconds on one core with AVX2, of which only the ratios matter: a row's group in a scan; a row's component in the
#: product, for a batch; a candidate's component in rescoring, from float32 rows and from float16 rows.
_SCAN_COST, _PRODUCT_COST, _FLOAT32_COST, _FLOAT16_COST = 0.026, 0.05, 0.2, 0.8


def max_scan_depth(count: int) -> int:
    """The most rows to list from a scan of ``count`` rows; for more, the product is faster."""
    return min(count, max(MIN_SCAN_DEPTH, count // _MAX_DEPTH_DIVISOR))


def choose_scan(matrix: CpuMatrix, weights: Floats, *, insist: bool) -> tuple[QuantisedScan | None, int]:
    """Choose the cheapest of the product and of scans with codes of three lengths, by estimated time of a search.

    Longer codes take time for every row; shorter codes have larger errors, so that more rows must be rescored.

    Args:
        weights: (M,) usual weights of the members.
        insist: Choose a scan even where the product is faster.

    Returns:
        A scan of all rows, or None for the product; and how many rows a query lists at first.
    """
    # Imported here because it loads FAISS, which the product does not need.
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
    # Of a small gallery a quarter trains centroids that are as good, in less time while a reload waits.
    taught = min(SAMPLE_ROWS, max(MIN_SCAN_DEPTH, count // 4))
    sample = matrix.sample(slice(None, None, max(1, count // taught)))
    for components in (8, 4, 2):
        scan = QuantisedScan(sample, components)
        least = _least_score(products[:, near], rows[:, near], scan.estimates(vectors, queries), min(count, 10))
        found = np.count_nonzero(products >= least[:, None], axis=1)
        needed = max(float(np.quantile(found, 0.9)), MIN_SCAN_DEPTH / 2)
        cost = count * scan.groups * _SCAN_COST + needed * width * (
            _FLOAT32_COST if matrix.is_float32 else _FLOAT16_COST
        )
        # Where even the longest list is too short, searches will fall back on the product.
        cost += (needed >= most) * count * width * _PRODUCT_COST
        if cost < least_cost:
            # Twice as deep as for the gallery's own images: other queries have less similar neighbours.
            depth = int(np.clip(2 ** np.ceil(np.log2(2 * needed)), MIN_SCAN_DEPTH, most))
            best, least_cost = scan, cost
        if needed <= MIN_SCAN_DEPTH / 2:
            break
    if best is not None:
        best.fill(matrix, weights, max(_WORST_ROWS, count // _WORST_DIVISOR))
        # From here on searches read single rows only.
        matrix.release()
    return best, depth


def _least_score(products: Floats, rows: Rows, estimates: Floats, hits: int) -> Floats:
    """(B,) the estimate below which no row can be among the ``hits`` best, by the errors of the given estimates.

    Args:
        products: (B, C) exact scores.
        rows: (B, C).
        estimates: (B, C) of the same rows.
    """
    count, fused = len(rows), products.copy()
    # With every listed row rescored, the score bound is the lowest estimate plus the largest error to be expected.
    lowest = estimates.min(axis=1)
    want, width = np.full(count, hits), np.full(count, rows.shape[1])
    _, bound, _ = bound_the_rest(fused, rows.copy(), estimates, lowest, width, want, padded_rows([()] * count))
    least: Floats = nth_best(fused, want) - (bound - lowest)
    return least
