"""Candidate generation: the nearest rows by fused score, found by estimates and rescored until they are certain.

Each round lists rows by estimated score, rescores the first of them exactly, and measures on these how wrong estimates
are; the worst case is their mean plus six standard deviations.  When no row that was not rescored can be among the hits
even then, the search ends.  Else it rescores further down the list; where the list is too short, it makes a longer one.
Rows whose quantisation error is exceptionally large are checked separately.

N rows, B queries, C candidates a query, M members, D components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cbir.core.search.candidates import Candidates, keep_best, no_candidates
from cbir.core.search.early_termination_bound import padded_rows
from cbir.core.search.estimates import EstimatedRows, estimate
from cbir.core.search.matrices.cpu_matrix import CpuMatrix
from cbir.core.search.matrices.gallery_matrix import GalleryMatrix
from cbir.core.search.rescoring import Rescored, add_poorly_coded_rows, rescore
from cbir.core.search.scan_tuning import MIN_SCAN_DEPTH, choose_scan
from cbir.core.vote import Conditions

if TYPE_CHECKING:
    from cbir.core.search.product_quantisation_scan import QuantisedScan

__all__ = ["CandidateGenerator", "Strategy"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Where estimates come from: the product with all rows, a scan of quantised rows, or whichever is faster.
Strategy = Literal["auto", "product", "scan"]

#: Smaller galleries use the product: it is as fast, and needs no codes.
MIN_SCAN_ROWS = 1024
#: Where no more rows than this pass a filter, all of them are rescored.
MAX_ROWS_WITHOUT_ESTIMATES = 4096
#: The share of the first list that is rescored in the first round.
_FIRST_ROUND_SHARE = 0.5


class CandidateGenerator:
    """Finds the nearest rows among vectors of this process; implements
    :class:`cbir.core.search.nearest_rows.NearestRows`.

    Args:
        weights: (M,) usual weights of the members; the depth of the scan is tuned for them.
        strategy: ``auto`` decides; ``scan`` and ``product`` force one.  A gallery on a GPU always uses the product.
    """

    def __init__(self, matrix: GalleryMatrix, weights: Floats, strategy: Strategy = "auto") -> None:
        self._matrix = matrix
        #: (D,) the member that each component belongs to.
        self._member_of = np.repeat(np.arange(len(weights)), np.diff(matrix.stops))
        self._weights = weights
        self._scan: QuantisedScan | None = None
        self._depth = MIN_SCAN_DEPTH
        large = strategy == "scan" or (strategy == "auto" and len(matrix) >= MIN_SCAN_ROWS)
        if isinstance(matrix, CpuMatrix) and large:
            self._scan, self._depth = choose_scan(matrix, weights, insist=strategy == "scan")

    @property
    def strategy(self) -> Strategy:
        """``scan`` or ``product``: what is used."""
        return "product" if self._scan is None else "scan"

    def describe(self) -> str:
        """What is used, in words."""
        if self._scan is None:
            return "product"
        return f"scan of {self._scan.groups} four-bit codes a row, {self._depth} deep at first"

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
        count = len(self._matrix)
        available = count if allowed is None else int(np.count_nonzero(allowed))
        padded = padded_rows(excluded)
        lost = [len(set(rows)) if allowed is None else int(allowed[list(set(rows))].sum()) for rows in excluded]
        certain = np.array([min(h, available - e) for h, e in zip(hits, lost, strict=True)])
        keep = np.array([min(k, available) for k in kept])
        # A further round costs more than rescoring some hundred rows, so the first round takes what suffices for most
        # queries.  The number does not depend on the rest of the batch, so neither do the answers.
        counts = np.array(
            [min(available, max(k + e, int(self._depth * _FIRST_ROUND_SHARE))) for k, e in zip(kept, lost, strict=True)]
        )
        found: Candidates | None = None
        rescore_all = allowed is not None and available <= MAX_ROWS_WITHOUT_ESTIMATES
        depth = max(int(counts.max()), min(count, self._depth))
        open_queries = np.arange(len(queries)) if available else np.arange(0)
        while len(open_queries):
            all_open = len(open_queries) == len(queries)
            asked, shares = (queries, weights) if all_open else (queries[open_queries], weights[open_queries])
            if rescore_all:
                assert allowed is not None
                listed = EstimatedRows.without_scores(np.flatnonzero(allowed), len(open_queries))
                counts[:] = available
            else:
                listed = estimate(self._matrix, self._scan, asked * shares[:, self._member_of], depth, allowed)
            scored, known = counts[open_queries], None
            too_short: list[Rows] = []
            width = listed.rows.shape[1]
            while True:
                part = rescore(
                    self._matrix, listed, scored, known, asked, shares, certain[open_queries], padded[open_queries]
                )
                enough = part.needed <= np.minimum(scored, width)
                found = self._keep(part, enough, open_queries, keep, found)
                if enough.all():
                    break
                too_short.append(open_queries[part.needed > width])
                more = ~enough & (part.needed <= width)
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
        if self._scan is not None and not rescore_all:
            return add_poorly_coded_rows(
                self._matrix, self._scan, self._weights, found, queries, weights, certain, padded, allowed
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
