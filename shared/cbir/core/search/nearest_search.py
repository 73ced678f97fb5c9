"""The nearest images by fused score: candidates by estimates, exact scores in float32, and proof that these suffice.

Estimates come from a compressed scan, or from a product with all rows.  The errors of the estimates are measured, for
every query, on the candidates that were scored exactly; the search goes deeper until no row that was not scored can be
among the hits that count: its estimate would have to be wrong by six standard deviations more than is to be expected.
Rows of which the candidates' errors say nothing, because their codes are far worse, are scored one by one.  The
product, whose errors are those of rounding, is the last resort.

N rows, B queries, C candidates a query, M members, D components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cbir.core.search.candidates import Candidates, keep_best, no_candidates
from cbir.core.search.cpu_matrix import CpuMatrix
from cbir.core.search.gallery_matrix import GalleryMatrix
from cbir.core.search.scan_choice import SHALLOWEST, choose_scan, deepest
from cbir.core.search.termination_bound import barred_rows, nth_best, prove
from cbir.core.vote import fused_scores

if TYPE_CHECKING:
    from cbir.core.search.quantised_scan import CompressedScan

__all__ = ["NearestSearch", "Strategy"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: How candidates are found: by a product with all rows, by a compressed scan, or by what is the faster.
Strategy = Literal["auto", "product", "scan"]

#: Galleries of fewer images are searched by a product: it is as fast, and needs no codes.
SCAN_ROWS = 1024
#: Where fewer images than this pass a filter, each of them is scored.
FEW_ROWS = 4096
#: The share of the first list that is scored before it is asked whether that suffices.
_AT_ONCE = 0.5


@dataclass(frozen=True)
class _Listed:
    """Rows by falling estimate: (B, K) rows, -1 and -inf past the end; ``floor`` (B,) bounds what is not listed."""

    rows: Rows
    estimates: Floats
    floor: Floats

    def of(self, places: NDArray[np.bool_]) -> _Listed:
        return _Listed(self.rows[places], self.estimates[places], self.floor[places])


@dataclass(frozen=True)
class _Scored:
    """The first candidates of a list: exact cosines, fused scores (-inf where barred), and what they prove.

    ``needed`` (B,) is how many of the list must be scored, one more than it holds where the list is too short;
    ``bound`` and ``level`` (B,) as in :class:`Candidates`.
    """

    rows: Rows
    similarities: Floats
    fused: Floats
    needed: Rows
    bound: Floats
    level: Floats


class NearestSearch:
    """Finds the nearest rows of a gallery.

    Args:
        matrix: Where the rows are.
        weights: (M,) usual weights of the members, for learning how deep to look.
        strategy: ``scan`` and ``product`` insist; a scan is for CPUs.
    """

    def __init__(self, matrix: GalleryMatrix, weights: Floats, strategy: Strategy = "auto") -> None:
        self._matrix = matrix
        #: Whose each component is.
        self._members = np.repeat(np.arange(len(weights)), np.diff(matrix.stops))
        self._weights = weights
        self._scan: CompressedScan | None = None
        self._depth = SHALLOWEST
        large = strategy == "scan" or (strategy == "auto" and len(matrix) >= SCAN_ROWS)
        if isinstance(matrix, CpuMatrix) and large:
            self._scan, self._depth = choose_scan(matrix, weights, insist=strategy == "scan")

    @property
    def strategy(self) -> Strategy:
        """What was chosen."""
        return "product" if self._scan is None else "scan"

    def describe(self) -> str:
        """What was chosen, in words."""
        if self._scan is None:
            return "product"
        return f"scan of {self._scan.groups} four-bit codes a row, {self._depth} deep at first"

    def find(
        self,
        queries: Floats,
        weights: Floats,
        wanted: Sequence[int],
        kept: Sequence[int],
        barred: Sequence[tuple[int, ...]],
        allowed: NDArray[np.bool_] | None = None,
    ) -> Candidates:
        """The nearest rows of each query.

        Args:
            queries: (B, D).
            weights: (B, M) that sum to 1.
            wanted: B numbers: so many of the best are exactly those of the whole gallery.
            kept: B numbers, at least ``wanted``: so many of the best that were scored are candidates.
            barred: Rows that each query may not have.
            allowed: (N,) rows that all of them may have, or None for all.

        Returns:
            C is the largest of ``kept``, or the number of rows.
        """
        count = len(self._matrix)
        free = count if allowed is None else int(np.count_nonzero(allowed))
        bars = barred_rows(barred)
        gone = [len(set(rows)) if allowed is None else int(allowed[list(set(rows))].sum()) for rows in barred]
        want = np.array([min(w, free - g) for w, g in zip(wanted, gone, strict=True)])
        keep = np.array([min(k, free) for k in kept])
        # A round of scoring costs more than some hundred candidates: so many are scored at once as most queries need.
        # How many does not depend on the rest of the batch, so that answers do not.
        at_once = np.array(
            [min(free, max(k + g, int(self._depth * _AT_ONCE))) for k, g in zip(kept, gone, strict=True)]
        )
        found: Candidates | None = None
        few = allowed is not None and free <= FEW_ROWS
        depth = max(int(at_once.max()), min(count, self._depth))
        todo = np.arange(len(queries)) if free else np.arange(0)
        while len(todo):
            asked, shares = (queries, weights) if len(todo) == len(queries) else (queries[todo], weights[todo])
            if few:
                assert allowed is not None
                listed = self._all(np.flatnonzero(allowed), len(todo))
                at_once[:] = free
            else:
                listed = self._list(self._weighted(asked, shares), depth, allowed)
            scored, known = at_once[todo], None
            too_short: list[Rows] = []
            width = listed.rows.shape[1]
            while True:
                part = self._score(listed, scored, known, asked, shares, want[todo], bars[todo])
                enough = part.needed <= np.minimum(scored, width)
                found = self._keep(part, enough, todo, keep, found)
                if enough.all():
                    break
                too_short.append(todo[part.needed > width])
                more = ~enough & (part.needed <= width)
                if not more.any():
                    break
                # Columns past what a query needed hold nothing of its own.
                known = part.similarities[more][:, :, : int(scored[more].min())]
                todo, listed, scored = todo[more], listed.of(more), part.needed[more]
                asked, shares = asked[more], shares[more]
            todo, depth = np.sort(np.concatenate(too_short)) if too_short else todo[:0], min(count, 4 * depth)
        if found is not None and self._scan is not None and not few:
            return self._with_worst(self._scan, found, queries, weights, want, bars, allowed)
        return found or no_candidates(len(queries), weights.shape[1], 0)

    def _weighted(self, queries: Floats, weights: Floats) -> Floats:
        return queries * weights[:, self._members]

    @staticmethod
    def _all(rows: Rows, queries: int) -> _Listed:
        listed = np.tile(rows, (queries, 1))
        return _Listed(listed, np.zeros(listed.shape, np.float32), np.full(queries, -np.inf, np.float32))

    def _list(self, queries: Floats, depth: int, allowed: NDArray[np.bool_] | None) -> _Listed:
        """At least ``depth`` rows by falling estimate, or as many as there are; one query where not all are allowed."""
        count = len(self._matrix)
        if self._scan is not None and depth <= deepest(count):
            if allowed is not None:
                # The scan sees no filter, so it looks as much deeper as the filter leaves out.
                depth = min(count, int(depth * count / max(1, int(np.count_nonzero(allowed)))) + 1)
            rows, estimates = self._scan.search(queries, depth)
            floor = estimates[:, -1] if depth < count else np.full(len(rows), -np.inf, np.float32)
            if allowed is not None:
                passed = allowed[rows[0]]
                rows, estimates = rows[:, passed], estimates[:, passed]
            return _Listed(rows, estimates, floor)
        rows, estimates = self._matrix.best(queries, depth, allowed)
        rows[np.isneginf(estimates)] = -1
        return _Listed(rows, estimates, estimates[:, -1] if depth < count else np.full(len(rows), -np.inf, np.float32))

    def _score(
        self,
        listed: _Listed,
        scored: Rows,
        known: Floats | None,
        queries: Floats,
        weights: Floats,
        want: Rows,
        barred: Rows,
    ) -> _Scored:
        """Score the first ``scored`` (B,) of a list, of which the ``known`` (B, M, c) cosines are known already."""
        widest = min(int(scored.max()), listed.rows.shape[1])
        rows = listed.rows[:, :widest].copy()
        if known is None:
            similarities = self._matrix.similarities(rows, queries)
        else:
            fresh = self._matrix.similarities(rows[:, known.shape[2] :], queries)
            similarities = np.concatenate([known, fresh], axis=2)
        fused = fused_scores(similarities, weights)
        proof = prove(fused, rows, listed.estimates, listed.floor, scored, want, barred)
        return _Scored(rows, similarities, fused, *proof)

    def _keep(
        self, part: _Scored, enough: NDArray[np.bool_], places: Rows, keep: Rows, found: Candidates | None
    ) -> Candidates:
        """Store the best candidates of the queries that have enough of them."""
        if found is None:
            found = no_candidates(len(keep), len(self._weights), int(keep.max()))
        keep_best(
            part.rows, part.similarities, part.fused, part.bound, part.level, enough, places, keep,
            found.rows, found.similarities, found.bound, found.level,
        )  # fmt: skip
        return found

    def _with_worst(
        self,
        scan: CompressedScan,
        found: Candidates,
        queries: Floats,
        weights: Floats,
        want: Rows,
        barred: Rows,
        allowed: NDArray[np.bool_] | None,
    ) -> Candidates:
        """Score the rows with the worst codes, of which the errors of other rows tell nothing, where it may matter."""
        if not len(scan.worst_rows):
            return found
        fused = fused_scores(found.similarities, weights)
        fused[found.rows < 0] = -np.inf
        last = nth_best(fused, want)
        # The errors are those of the usual weights; others raise them by at most their largest ratio to these.
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.nan_to_num(weights / self._weights, nan=0.0, posinf=np.inf).max(axis=1)
            # The largest come first.
            if not (scan.worst_errors[0] * ratio >= last - found.level).any():
                return found
            matters = scan.worst_errors * ratio[:, None] >= (last - found.level)[:, None]
        most = int(np.count_nonzero(matters, axis=1).max())
        rows = np.where(matters[:, :most], scan.worst_rows[:most], -1)
        if allowed is not None:
            rows[~allowed[rows]] = -1
        rows[(rows[:, :, None] == barred[:, None]).any(axis=2)] = -1
        similarities = self._matrix.similarities(rows, queries)
        scores = fused_scores(similarities, weights)
        rows[scores < last[:, None]] = -1
        rising = np.flatnonzero((rows >= 0).any(axis=0))
        if not len(rising):
            return found
        rows, similarities = rows[:, rising], similarities[:, :, rising]
        rows[(rows[:, :, None] == found.rows[:, None]).any(axis=2)] = -1
        return Candidates(
            np.concatenate([found.rows, rows], axis=1), np.concatenate([found.similarities, similarities], axis=2),
            found.bound, found.level,
        )  # fmt: skip
