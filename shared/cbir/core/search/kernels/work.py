"""What searches cost as they run: a kernel that does not keep what was measured of it is set aside for a while.

Work is counted, not timed, so that a busy machine does not look like bad estimates: lists made, rows scored, products
made in the end all the same; each at the price that was measured when the gallery was loaded.
"""

from __future__ import annotations

from cbir.core.search.kernels.timing import Times

__all__ = ["Work"]

#: The share of a search in the running average.
_SHARE = 0.05
#: Searches for which a kernel is set aside.
_ASIDE = 1000
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
        self._average = _BEGINNING
        self._aside = 0

    def allows(self) -> bool:
        """Whether the next search should use the kernel; to be asked once a search."""
        if self._aside:
            self._aside -= 1
        return not self._aside

    def add(self, queries: int, lists: int, scored: int, products: int) -> None:
        """A search has ended.

        Args:
            queries: In its batch.
            lists: That were made by the kernel, counted by query.
            scored: Rows, of all queries together.
            products: Queries that were left to the plain product.
        """
        product = self._rows * self._times.of("product", queries)
        spent = (
            self._rows * self._share * self._times.of(self._way, queries) * lists
            + self._times.rescoring(queries) * scored
        )
        self._average += _SHARE * ((spent + product * products) / (product * queries) - self._average)
        if self._average > 1:
            self._average, self._aside = _BEGINNING, _ASIDE
