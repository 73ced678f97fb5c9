"""What an update of a large gallery leaves as it is: the segments of the live version that the next one takes over.

See :mod:`cbir.core.artifacts.segments` for what a segment is.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import PLACES_FILE, IndexVersion, VersionWriter, segment_file
from cbir.core.ensemble import EnsembleSpec, has_text_tower
from cbir.core.vector_index import grows, index_file

__all__ = ["MOST_SEGMENTS", "NextSegment"]

#: Segments that a version may have.  Of one that has as many the first alone is taken over, and the rows of the others
#: go into the next segment.  The first is written anew when the fit is: after a twentieth of the images has changed.
MOST_SEGMENTS = 8


class NextSegment:
    """The segment that an update adds.

    Args:
        live: The version whose segments are taken over.

    Attributes:
        number: Its number.
        stays: (L,) whether a row of ``live`` lies in a segment that is taken over.
    """

    def __init__(self, live: IndexVersion) -> None:
        rows = live.manifest.segments or (live.manifest.images,)
        self._taken = rows if len(rows) < MOST_SEGMENTS else rows[:1]
        self._places = np.arange(live.manifest.images) if live.places is None else live.places
        self.number = len(self._taken)
        self.stays = self._places < sum(self._taken)

    @classmethod
    def after(
        cls, live: IndexVersion, ensemble: EnsembleSpec, kinds: Mapping[str, str], writer: VersionWriter
    ) -> NextSegment | None:
        """The segment for a version that keeps the fit of ``live``; None where its files cannot be taken over.

        Args:
            kinds: Of the vector index, by member.
        """
        if writer.previous is None or writer.previous.name != live.name:
            return None
        told = live.manifest.members
        same = all(
            told[member.name]["index"] == kinds[member.name]
            and grows(kinds[member.name])
            and bool(told[member.name].get("text")) == has_text_tower(member)
            for member in ensemble.members
        )
        return cls(live) if same else None

    def take_over(self, writer: VersionWriter, name: str) -> str:
        """Take the files of the earlier segments over, by the name of the first; return the name of this one's."""
        for number in range(self.number):
            writer.take_over(segment_file(name, number))
        return segment_file(name, self.number)

    def take_over_index(self, writer: VersionWriter, member: str, kind: str) -> None:
        """Take a member's approximate index over, if it has one: it is that of the first segment."""
        if file := index_file(kind):
            writer.take_over(f"members/{member}/{file}")

    def place(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(K,) the rows of the next version that are written, for (N,) the row that each has in ``live``, or -1."""
        return np.flatnonzero((rows < 0) | ~self.stays[np.maximum(rows, 0)])

    def write_places(self, writer: VersionWriter, rows: NDArray[np.int64]) -> tuple[int, ...]:
        """Write where the rows are; return the numbers of rows of all segments."""
        written = self.place(rows)
        places = np.empty(len(rows), np.int32)
        there = np.ones(len(rows), np.bool_)
        there[written] = False
        places[there] = self._places[rows[there]]
        places[written] = sum(self._taken) + np.arange(len(written))
        np.save(writer.file(PLACES_FILE), places)
        return (*self._taken, len(written))
