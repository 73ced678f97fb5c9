"""Candidate generation: the nearest rows by fused score, found by estimates and rescored until they are certain.

Each round lists rows by estimated score and rescores the first of them exactly.  Estimates of a scan are off by what is
measured on these rows (the worst case is the mean plus six standard deviations), those in half precision by a proven
bound at most.  When no row that was not rescored can be among the hits even then, the search ends.  Else it rescores
further down the list; where the list is too short, it makes a longer one, and where that would take longer than a
product with all rows, the product.  Rows whose quantisation error is exceptionally large are checked separately.

N rows, B queries, C candidates a query, M members, D components.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import compute_alone
from cbir.core.search.candidates import Candidates, Wanted, keep_best, no_candidates
from cbir.core.search.early_termination_bound import padded_rows
from cbir.core.search.estimates import EstimatedRows, estimate
from cbir.core.search.kernels.choice import MIN_DEPTH, MIN_MEASURED, Kernel
from cbir.core.search.kernels.prepared import Kernels
from cbir.core.search.matrices.cpu_matrix import CpuMatrix
from cbir.core.search.matrices.gallery_matrix import GalleryMatrix
from cbir.core.search.rescoring import Rescored, add_poorly_coded_rows, rescore
from cbir.core.vote import Conditions, weighted_queries

__all__ = ["CandidateGenerator", "Kernel"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Where no more rows than this pass a filter, all of them are rescored.
MAX_ROWS_WITHOUT_ESTIMATES = 4096
#: The share of the first list that is rescored in the first round.
_FIRST_ROUND_SHARE = 0.5


class CandidateGenerator:
    """Finds the nearest rows among vectors of this process; implements
    :class:`cbir.core.search.nearest_rows.NearestRows`.

    Args:
        weights: (M,) usual weights of the members; the depth of the scan is tuned for them.
        kernel: ``auto`` chooses by measuring; others force one kernel.  A gallery on a GPU always uses the product.
    """

    def __init__(self, matrix: GalleryMatrix, weights: Floats, kernel: Kernel = "auto") -> None:
        self._matrix = matrix
        #: (D,) the member that each component belongs to.
        self._member_of = np.repeat(np.arange(len(weights)), np.diff(matrix.stops))
        self._weights = weights
        measured = kernel not in ("auto", "product") or (
            kernel == "auto" and len(matrix) * matrix.stops[-1] >= MIN_MEASURED
        )
        self.kernels = (
            Kernels.choose(matrix, weights, kernel)
            if measured and isinstance(matrix, CpuMatrix)
            else Kernels.product_only(len(matrix))
        )

    def find(
        self,
        queries: Floats,
        weights: Floats,
        hits: Sequence[int],
        kept: Sequence[int],
        excluded: Sequence[tuple[int, ...]],
        allowed: NDArray[np.bool_] | None = None,
        conditions: Conditions | None = None,
    ) -> Candidates:
        """See :class:`cbir.core.search.nearest_rows.NearestRows`."""
        if not self.kernels.alone:
            return self._find(queries, weights, hits, kept, excluded, allowed)
        undo = compute_alone()
        try:
            return self._find(queries, weights, hits, kept, excluded, allowed)
        finally:
            undo()

    def _find(
        self,
        queries: Floats,
        weights: Floats,
        hits: Sequence[int],
        kept: Sequence[int],
        excluded: Sequence[tuple[int, ...]],
        allowed: NDArray[np.bool_] | None,
    ) -> Candidates:
        begun, count = perf_counter(), len(self._matrix)
        wanted = Wanted.of(count, hits, kept, excluded, allowed)
        available, certain, padded = wanted.available, wanted.certain, padded_rows(excluded)
        rescore_all = allowed is not None and available <= MAX_ROWS_WITHOUT_ESTIMATES
        first = kernel = self.kernels.product if rescore_all else self.kernels.of(len(queries))
        # A further round costs more than rescoring some hundred rows, so the first round takes what suffices for most
        # queries.
        counts = np.array(
            [
                min(available, max(k + e, int(kernel.depth * _FIRST_ROUND_SHARE)))
                for k, e in zip(kept, wanted.lost, strict=True)
            ]
        )
        found: Candidates | None = None
        depth = max(int(counts.max()), min(count, kernel.depth))
        open_queries = np.arange(len(queries)) if available else np.arange(0)
        lists = scored_rows = products = 0
        while len(open_queries):
            if not kernel.lists(depth, allowed):
                kernel, depth = self.kernels.product, max(int(counts.max()), min(count, MIN_DEPTH))
            all_open = len(open_queries) == len(queries)
            asked, shares = (queries, weights) if all_open else (queries[open_queries], weights[open_queries])
            if rescore_all:
                assert allowed is not None
                listed = EstimatedRows.without_scores(np.flatnonzero(allowed), len(open_queries))
                counts[:] = available
            else:
                listed = estimate(
                    self._matrix, kernel.source, weighted_queries(asked, shares, self._member_of), depth, allowed
                )
                lists += len(open_queries) * (kernel is first)
                products += len(open_queries) * (kernel is not first)
            scored, known = counts[open_queries], None
            too_short: list[Rows] = []
            width = listed.rows.shape[1]
            while True:
                part = rescore(
                    self._matrix, listed, scored, known, asked, shares, certain[open_queries], padded[open_queries]
                )
                scored_rows += int(np.minimum(scored, width).sum())
                enough = part.needed <= np.minimum(scored, width)
                found = self._keep(part, enough, open_queries, wanted.keep, found)
                if enough.all():
                    break
                # A list that leaves too many rows open is as bad as one that is too short.
                short = ~enough & (part.needed > min(width, kernel.most))
                too_short.append(open_queries[short])
                more = ~enough & ~short
                if not more.any():
                    break
                # A query's columns beyond its own count are padding, so only the columns that all have are kept.
                known = part.similarities[more][:, :, : int(scored[more].min())]
                open_queries, listed, scored = open_queries[more], listed.of(more), part.needed[more]
                asked, shares = asked[more], shares[more]
            open_queries = np.sort(np.concatenate(too_short)) if too_short else open_queries[:0]
            depth = min(count, 4 * depth)
        if found is None:
            return no_candidates(len(queries), weights.shape[1], 0)
        if allowed is None:
            self.kernels.count(first, len(queries), lists, scored_rows, products, perf_counter() - begun)
        if first.scan is not None:
            return add_poorly_coded_rows(
                self._matrix, first.scan, self._weights, found, queries, weights, certain, padded, allowed
            )
        return found

    def of_labels(
        self, rows: Rows, bonus: Floats, labels: Sequence[int], query: Floats, weights: Floats, count: int
    ) -> tuple[Rows, Floats]:
        """See :class:`cbir.core.search.nearest_rows.NearestRows`; all of the rows."""
        return rows[None], self._matrix.similarities(rows[None], query)

    def _keep(
        self, part: Rescored, enough: NDArray[np.bool_], places: Rows, keep: Rows, found: Candidates | None
    ) -> Candidates:
        """Store the best rows of the queries that are finished, at their ``places`` in the batch."""
        if found is None:
            found = no_candidates(len(keep), len(self._weights), int(keep.max()))
        keep_best(
            part.rows, part.similarities, part.fused, part.score_bound, part.estimate_bound, enough, places, keep,
            found.rows, found.similarities, found.score_bound, found.estimate_bound,
        )  # fmt: skip
        return found
