"""Reading the gallery's table row by row, from the segments that it lies in, without holding more than some rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["TableReader"]

#: Rows that are read at a time.
_PIECE = 32_768


class TableReader:
    """The gallery's table, of which rows are read in rising order, and few are held.

    Args:
        segments: Opens the table of each segment: record batches.
        rows: Number of rows of each.
        places: (N,) where each row of the gallery is; None: there is one segment, and all its rows count.
    """

    def __init__(
        self, segments: Sequence[Callable[[], Iterator[Any]]], rows: Sequence[int], places: NDArray[np.integer] | None
    ) -> None:
        self._streams = [_Stream(opened) for opened in segments]
        self._starts = np.cumsum([0, *rows])
        self._places = places

    def take(self, rows: NDArray[np.integer]) -> Any:
        """A table of the (K,) rows with these numbers, all higher than those taken before; K is at least 1."""
        if self._places is None:
            return self._streams[0].take(rows)
        places = self._places[rows]
        order, parts = [], []
        for stream, start, stop in zip(self._streams, self._starts, self._starts[1:], strict=False):
            here = np.flatnonzero((places >= start) & (places < stop))
            if len(here):
                parts.append(stream.take(places[here] - start))
                order.append(here)
        if len(parts) == 1:
            return parts[0]
        return pa.concat_tables(parts).combine_chunks().take(pa.array(np.argsort(np.concatenate(order))))

    def batches(self, count: int) -> Iterator[Any]:
        """The first ``count`` rows, as record batches."""
        for start in range(0, count, _PIECE):
            yield from self.take(np.arange(start, min(start + _PIECE, count))).combine_chunks().to_batches()


class _Stream:
    """The table of one segment."""

    def __init__(self, opened: Callable[[], Iterator[Any]]) -> None:
        self._open = opened
        self._coming: Iterator[Any] | None = None
        self._held: list[Any] = []
        self._first = self._stop = 0

    def take(self, rows: NDArray[np.integer]) -> Any:
        """The rows with these numbers, all higher than those taken before."""
        if self._coming is None:
            self._coming = self._open()
        while self._stop <= rows[-1]:
            batch = next(self._coming)
            self._held.append(batch)
            self._stop += batch.num_rows
        while self._first + self._held[0].num_rows <= rows[0]:
            self._first += self._held.pop(0).num_rows
        table = pa.Table.from_batches(self._held).combine_chunks()
        if len(rows) == rows[-1] - rows[0] + 1:
            return table.slice(int(rows[0]) - self._first, len(rows))
        return table.take(pa.array(rows - self._first))
