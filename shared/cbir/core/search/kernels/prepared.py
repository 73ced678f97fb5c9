"""The chosen kernels of one gallery, ready to search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cbir.core.search.estimates import unfiltered_depth
from cbir.core.search.kernels.choice import MIN_DEPTH, Kernel, choose_kernels, forced_kernel, most_scored, scan_share
from cbir.core.search.kernels.half_product import HALVES, HalfProduct
from cbir.core.search.kernels.timing import BATCH, between
from cbir.core.search.kernels.work import Work
from cbir.core.search.matrices.cpu_matrix import CpuMatrix

if TYPE_CHECKING:
    from cbir.core.search.product_quantisation_scan import QuantisedScan

__all__ = ["Kernels", "PreparedKernel"]

Floats = NDArray[np.float32]

#: Most rows whose large quantisation errors are recorded: 256, or N / 1000 where that is more.
_WORST_ROWS, _WORST_DIVISOR = 256, 1000


@dataclass(frozen=True)
class PreparedKernel:
    """One way to make estimates.

    Attributes:
        source: The scan, or the product in half precision; None: the product with all rows as they are.
        depth: Rows that a query lists at first.
        most: Rows from which on the plain product is faster.
        work: Counts what it costs; None where it is used whatever that is.
    """

    name: str
    source: QuantisedScan | HalfProduct | None
    depth: int
    most: int
    work: Work | None = None

    @property
    def scan(self) -> QuantisedScan | None:
        """The source, if it is a scan."""
        return None if isinstance(self.source, HalfProduct) else self.source

    def lists(self, depth: int, allowed: NDArray[np.bool_] | None) -> bool:
        """Whether it is worth it to list so many rows, of those that are allowed."""
        if self.scan is not None and allowed is not None:
            depth = unfiltered_depth(depth, allowed)
        return depth <= self.most


class Kernels:
    """The kernels for one query and for batches.

    Attributes:
        product: The plain product, which is always there.
        alone: They were measured on one thread, and are to search so.
    """

    def __init__(
        self,
        product: PreparedKernel,
        one: PreparedKernel,
        batch: PreparedKernel,
        costs: Mapping[str, tuple[float, float]] | None = None,
        alone: bool = False,
    ) -> None:
        self.product, self.one, self.batch, self.alone = product, one, batch, alone
        #: By number of queries from 0 on; more than the last has are a full batch.
        self._by_queries = [one, one]
        for queries in range(2, BATCH if costs else 0):
            cheapest = min((one, batch), key=lambda kernel: between(*(costs or {})[kernel.name], queries))
            self._by_queries.append(cheapest)

    @classmethod
    def product_only(cls, count: int) -> Kernels:
        """The product with all of ``count`` rows, for all queries."""
        product = PreparedKernel("product", None, min(count, MIN_DEPTH), count)
        return cls(product, product, product)

    @classmethod
    def choose(cls, matrix: CpuMatrix, weights: Floats, kernel: Kernel) -> Kernels:
        """Choose and prepare the kernels for a gallery.

        Args:
            weights: (M,) usual weights of the members.
            kernel: ``auto`` chooses by measuring; others force one kernel, where these rows can have it.
        """
        count = len(matrix)
        chosen = choose_kernels(matrix, weights) if kernel == "auto" else forced_kernel(matrix, weights, kernel)
        choice, times, scan = chosen.choice, chosen.times, chosen.scan
        product = cls.product_only(count).product
        made = {"product": product}
        for name, queries in ((choice.one, 1), (choice.batch, BATCH)):
            if name in made:
                continue
            most = most_scored(times, count, queries)
            if name in HALVES:
                work = Work(times, name, count) if times else None
                made[name] = PreparedKernel(name, HalfProduct(matrix, name), min(count, MIN_DEPTH), most, work)
            elif scan is not None:
                work = Work(times, name, count, scan_share(choice.components)) if times else None
                scan.fill(matrix, weights, max(_WORST_ROWS, count // _WORST_DIVISOR))
                made[name] = PreparedKernel(name, scan, choice.depth, max(most, choice.depth), work)
        if not {choice.one, choice.batch} & {"product", "f16"}:
            # From here on searches read single rows only.
            matrix.release()
        return cls(product, made[choice.one], made[choice.batch], choice.costs, chosen.alone)

    def of(self, queries: int) -> PreparedKernel:
        """The kernel for a batch of so many queries."""
        kernel = self._planned(queries)
        return kernel if kernel.work is None or kernel.work.allows() else self.product

    def count(self, used: PreparedKernel, queries: int, lists: int, scored: int, products: int, seconds: float) -> None:
        """A search of a batch by :meth:`of` has ended; see :meth:`cbir.core.search.kernels.work.Work.add`."""
        planned = self._planned(queries)
        if used is self.product and planned.work is not None:
            planned.work.add_instead(queries, seconds)
        elif used.work is not None:
            used.work.add(queries, lists, scored, products, seconds)

    def _planned(self, queries: int) -> PreparedKernel:
        return self._by_queries[queries] if queries < len(self._by_queries) else self.batch

    def describe(self) -> str:
        """What is used, in words."""
        return " and ".join(
            dict.fromkeys(_words(kernel, queries) for kernel, queries in ((self.one, "one"), (self.batch, "batch")))
        )


def _words(kernel: PreparedKernel, queries: str) -> str:
    detail = f" of {kernel.scan.groups} four-bit codes a row, {kernel.depth} deep at first" if kernel.scan else ""
    return f"{queries}: {kernel.name}{detail}"
