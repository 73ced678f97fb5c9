"""What searches cost as they run: a kernel that does not keep what was measured of it is set aside for a while.

Work is counted, not timed, so that a busy machine does not look like bad estimates: lists made, rows scored, products
made in the end all the same; each at the price that was measured when the gallery was loaded.  Prices may be wrong, as
the machine may have been busy then, or searches get fewer threads now: so a kernel that was set aside comes back once
the product is seen to take longer in its place.  And queries may have been unlike those that follow, as the first ones
of all are: so a kernel is tried again soon at first.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean, median

from cbir.core.search.kernels.timing import Times

__all__ = ["Work"]

#: The share of a search in the running average.
_SHARE = 0.05
#: Searches for which a kernel is set aside: the first time, and at most, as each time doubles.
_FIRST_ASIDE, _ASIDE = 32, 1024
#: Searches by the product after which its time is compared with that of as many by the kernel.
_TRIED = 16
#: Where the average begins, and begins again.
_BEGINNING = 0.8


class Work:
    """The cost of one kernel's searches, as a multiple of that of the plain product.

    Args:
        way: The kernel, as ``times`` names it.
        rows: Of the gallery.
        share: How many times as long it takes as what was timed.
    """

    def __init__(self, times: Times, way: str, rows: int, share: int = 1) -> None:
        self._times, self._way, self._rows, self._share = times, way, rows, share
        self._average = self._set_aside_at = _BEGINNING
        self._aside = 0
        #: The average from which on the product is faster: 1 if prices are right.
        self._limit = 1.0
        self._next_aside = _FIRST_ASIDE
        # Seconds that searches took by the kernel and by the product in its place, in prices of the product.
        self._taken: deque[float] = deque(maxlen=_TRIED)
        self._instead: list[float] = []

    def allows(self) -> bool:
        """Whether the next search should use the kernel; to be asked once a search."""
        if self._aside:
            self._aside -= 1
        return not self._aside

    def add(self, queries: int, lists: int, scored: int, products: int, seconds: float) -> None:
        """A search has ended.

        Args:
            queries: In its batch.
            lists: That were made by the kernel, counted by query.
            scored: Rows, of all queries together.
            products: Queries that were left to the plain product.
            seconds: That it took.
        """
        product = self._rows * self._times.of("product", queries)
        spent = (
            self._rows * self._share * self._times.of(self._way, queries) * lists
            + self._times.rescoring(queries) * scored
        )
        self._average += _SHARE * ((spent + product * products) / (product * queries) - self._average)
        self._taken.append(seconds / (product * queries))
        if self._average > self._limit:
            self._set_aside_at, self._aside, self._instead = self._average, self._next_aside, []
            self._average, self._next_aside = _BEGINNING * self._limit, min(2 * self._next_aside, _ASIDE)
        elif self._average < self._limit / 2:
            self._next_aside = _FIRST_ASIDE

    def add_instead(self, queries: int, seconds: float) -> None:
        """A search by the product has ended, in the place of the kernel that was set aside."""
        if not self._aside or len(self._instead) >= _TRIED:
            return
        self._instead.append(seconds / (self._rows * self._times.of("product", queries) * queries))
        if len(self._instead) == _TRIED:
            # The first ones read rows that were not in memory, and any may have been interrupted.
            product, kernel = median(self._instead), fmean(self._taken)
            if product > kernel:
                # Both take equally long when the kernel costs as many times as much as now as the product is slower.
                self._limit, self._aside = self._set_aside_at * product / kernel, 0
                self._average = _BEGINNING * self._limit
