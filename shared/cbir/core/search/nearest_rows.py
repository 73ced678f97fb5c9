"""The protocol of what finds the rows nearest to a query, wherever the vectors are kept.

:class:`cbir.core.search.candidate_generation.CandidateGenerator` finds them among vectors of this process.

N rows, B queries, M members, D components, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cbir.core.search.candidates import Candidates
from cbir.core.vote import Conditions

__all__ = ["NearestRows"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


class NearestRows(Protocol):
    """Finds the nearest rows of a gallery, by weighted sums of the members' cosines."""

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
        """The nearest rows of each query.

        Args:
            queries: (B, D).
            weights: (B, M) that sum to 1.
            hits: B numbers: so many of the best candidates are certain to be the best of the whole gallery.
            kept: B numbers, at least ``hits``: how many of the rescored rows become candidates.
            excluded: Rows that each query may not have.
            allowed: (N,) rows that the query may have, or None for all; only for a single query.
            conditions: What ``allowed`` stands for, for stores that select rows themselves; None where it stands for
                no conditions alone.

        Returns:
            C is the largest of ``kept``, or the number of rows.
        """
        ...

    def of_labels(
        self, rows: Rows, bonus: Floats, labels: Sequence[int], query: Floats, weights: Floats, count: int
    ) -> tuple[Rows, Floats]:
        """The best of the rows that have certain labels, by their scores and what their labels add.

        Args:
            rows: (R,) all rows that count.
            bonus: (R,) what is added to the score of each.
            labels: Numbers of their labels.
            query: (1, D).
            weights: (1, M).
            count: At least so many of the best rows are among those returned, where there are as many.

        Returns:
            (1, C) rows, and (1, M, C) their exact cosines.
        """
        ...
