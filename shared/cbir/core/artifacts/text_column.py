"""A column of text as Arrow keeps it: characters and offsets, of which single values become Python strings when asked.

A list of a million strings would take a hundred megabytes and be visited by every collection of garbage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from operator import index
from typing import Any, SupportsIndex, cast, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

__all__ = ["TextColumn"]

#: Rows that are converted in one call, in about a millisecond: other threads wait meanwhile.
_PIECE = 8192


class TextColumn(Sequence[str]):
    """A column without missing values.

    Args:
        column: A ``large_string`` array in one piece.
    """

    def __init__(self, column: Any) -> None:
        self._column = column
        _, offsets, characters = column.buffers()
        count = len(column)
        self._offsets = np.frombuffer(offsets, np.int64, count + 1, 8 * column.offset) if count else np.zeros(1, int)
        self._characters = memoryview(characters) if characters is not None else memoryview(b"")

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, row: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: SupportsIndex | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[place] for place in range(*row.indices(len(self)))]
        row, count = index(row), len(self._column)
        if not -count <= row < count:
            raise IndexError(f"row {row} of {count}")
        row %= count
        return str(self._characters[self._offsets[row] : self._offsets[row + 1]], "utf-8")

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _PIECE):
            yield from self._column.slice(start, _PIECE).to_pylist()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def _order(self) -> NDArray[np.int64] | None:
        """(N,) rows by rising value, equal ones by rising row; None where that is the order that they have."""
        if len(self) < 2 or pc.all(pc.less_equal(self._column[:-1], self._column[1:])).as_py():
            return None
        return cast("NDArray[np.int64]", pc.sort_indices(self._column).to_numpy().astype(np.int64))

    def rows_of(self, value: str) -> list[int]:
        """The rows with this value, in their order."""
        order, sought = self._order, value.encode()
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            row = middle if order is None else int(order[middle])
            if bytes(self._characters[self._offsets[row] : self._offsets[row + 1]]) < sought:
                low = middle + 1
            else:
                high = middle
        found: list[int] = []
        while low < len(self):
            row = low if order is None else int(order[low])
            if self[row] != value:
                break
            found.append(row)
            low += 1
        return found

    def respelt(self) -> tuple[TextColumn, NDArray[np.int64]]:
        """The values that are not ASCII in Unicode's composed form (NFC), and their rows."""
        rows = np.flatnonzero(~pc.string_is_ascii(self._column).to_numpy(zero_copy_only=False))
        values = pc.utf8_normalize(self._column.take(pa.array(rows)), form="NFC")
        return TextColumn(values.cast(pa.large_string())), rows
