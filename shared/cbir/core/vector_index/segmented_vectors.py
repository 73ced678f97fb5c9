"""Vectors whose rows lie in several arrays: those that are mapped from the segments of an index version.

N rows of d components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["HalfVectors", "SegmentedVectors"]

Places = NDArray[np.integer]


class SegmentedVectors:
    """(N, d) float16 rows, gathered from the segments whenever some are asked for, so that all of them stay on disk.

    Args:
        segments: (n, d) arrays.
        places: (N,) where each row is, counted through all segments; some places may be nobody's.
    """

    dtype = np.dtype(np.float16)
    ndim = 2

    def __init__(self, segments: Sequence[NDArray[np.float16]], places: Places) -> None:
        # What mapped the files is kept, so that their pages can be let go of.
        self.maps = [found for part in segments if (found := getattr(part, "_mmap", None)) is not None]
        self.segments = [np.asarray(part) for part in segments]
        self.places = places
        self._starts = np.cumsum([0, *(len(part) for part in segments)]).tolist()
        self.shape = (len(places), int(segments[0].shape[1]))
        self.nbytes = 2 * self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: Any) -> NDArray[np.float16]:
        """The rows of a slice, an array of row numbers, or one number; not copied where they lie side by side."""
        asked = self.places[rows]
        if asked.ndim == 0:
            return cast("NDArray[np.float16]", self._gathered(asked[None])[0])
        return self._gathered(asked)

    def _gathered(self, places: Places) -> NDArray[np.float16]:
        count = len(places)
        if count and places[-1] - places[0] == count - 1 and (np.diff(places) == 1).all():
            for segment, start in zip(self.segments, self._starts, strict=False):
                if start <= places[0] and places[-1] < start + len(segment):
                    return segment[int(places[0]) - start : int(places[-1]) - start + 1]
        found = np.empty((count, self.shape[1]), np.float16)
        # Nearly all rows are in the first segment: they are read at once, and the others put in their places.
        np.take(self.segments[0], places, axis=0, out=found, mode="clip")
        for segment, start in list(zip(self.segments, self._starts, strict=False))[1:]:
            here = np.flatnonzero((places >= start) & (places < start + len(segment)))
            if len(here):
                found[here] = segment[places[here] - start]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(self.dtype if dtype is None else dtype, copy=copy is not False)

    def astype(self, dtype: Any) -> NDArray[Any]:
        """All rows, as an array of that type."""
        return self[:].astype(dtype)

    def first(self, count: int) -> SegmentedVectors:
        """The first ``count`` rows, in the same memory."""
        return SegmentedVectors(self.segments, self.places[:count])


#: A member's vectors: one array, or rows of several.
HalfVectors = NDArray[np.float16] | SegmentedVectors
