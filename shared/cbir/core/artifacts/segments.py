"""Segments: the files of a version that an update leaves as they are.

A version that changes little of a large one takes over its files of rows, as hard links and with their checksums, and
has one more of each kind for the rows that are new.  ``places.npy`` tells where each row is; places that it does not
name are tombstones: rows that are gone or were replaced.

images.parquet, members/<member>/embeddings.npy       the first segment: rows 0 to n of the places
images-1.parquet, members/<member>/embeddings-1.npy   the second: the next places; and so on
places.npy                                            (N,) int32; rising within each segment

In a segment, rows have the order of the version, which is that of ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PLACES_FILE", "check_places", "segment_file"]

PLACES_FILE = "places.npy"


def segment_file(name: str, number: int) -> str:
    """The name of a file in the segment of that number, from 0, by the name that it has in the first."""
    stem, dot, ending = name.rpartition(".")
    return f"{stem}-{number}{dot}{ending}" if number else name


def check_places(places: NDArray[Any], rows: int, segments: Sequence[int]) -> None:
    """Refuse what are no places of so many rows in segments of these numbers of rows.

    Raises:
        ValueError: They are of another type or number, lie outside, or do not rise within a segment.
    """
    if places.dtype != np.int32 or places.shape != (rows,) or places.min() < 0 or places.max() >= sum(segments):
        raise ValueError("no places of the rows")
    start = 0
    for count in segments:
        here = places[(places >= start) & (places < start + count)]
        if not (np.diff(here) > 0).all():
            raise ValueError("places that do not rise")
        start += count
