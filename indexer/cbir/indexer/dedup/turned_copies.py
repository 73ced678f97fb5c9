"""Turned and mirrored copies among the images of a gallery.

Where to look is told by the hashes alone: what turning does to a hash is known but for a few bits.  Whether two images
are copies is told by their pixels: each is read and made small, one is turned, and they are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cbir.core.artifacts import Gallery
from cbir.core.images import Box, Symmetry, correlation, perceptual_hash, turned, turned_hashes
from cbir.core.search import LIKENESS, SmallPictures, close_pairs

__all__ = ["TurnedCopies", "TurnedCopy"]

#: The hash of a turned picture is known but for about so many bits.
_UNSURE_BITS = 4
_WHOLE = Box(0, 0, 32, 32)


@dataclass(frozen=True)
class TurnedCopy:
    """How an image is got from the one it is compared with.

    Attributes:
        symmetry: What is done to the other picture.
        bits: In how many bits the perceptual hashes differ then.
        likeness: Correlation of the pixels then, at most 1.
    """

    symmetry: Symmetry
    bits: int
    likeness: float


class TurnedCopies:
    """Finds them.

    Args:
        bits: Most bits in which the hashes of copies differ.
    """

    def __init__(self, gallery: Gallery, pictures: SmallPictures, bits: int) -> None:
        self._gallery, self._pictures, self._bits = gallery, pictures, bits

    def pairs(self, rows: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Pairs of rows, one < other, that prove to be copies; of rows with equal hashes the first stands for all."""
        values, first = np.unique(self._gallery.phashes[np.asarray(rows, np.int64)], return_index=True)
        stands_for = np.asarray(rows, np.int64)[first]
        everything = [values, *(turned_hashes(values, symmetry) for symmetry in Symmetry)]
        different, place = np.unique(np.concatenate(everything), return_inverse=True)
        # A value may be that of many images, each of which may be turned.
        owner = np.tile(np.arange(len(values)), len(everything))
        order = np.argsort(place, kind="stable")
        edges = np.searchsorted(place[order], np.arange(len(different) + 1))
        straight = place[: len(values)]
        linked = np.concatenate([close_pairs(different, self._bits + _UNSURE_BITS), np.stack([straight, straight], 1)])
        seen: set[tuple[int, int]] = set()
        is_straight = np.zeros(len(different), bool)
        is_straight[straight] = True
        # Turned both, a pair is the same pair again.
        for one, other in linked[is_straight[linked].any(axis=1)].tolist():
            for a in owner[order[edges[one] : edges[one + 1]]].tolist():
                for b in owner[order[edges[other] : edges[other + 1]]].tolist():
                    pair = (min(stands_for[a], stands_for[b]), max(stands_for[a], stands_for[b]))
                    if a != b and pair not in seen:
                        seen.add(pair)
                        if self.copy(*map(int, pair)) is not None:
                            yield int(pair[0]), int(pair[1])

    def copy(self, original: int, other: int) -> TurnedCopy | None:
        """How another row's picture is got from that of one; None if it is no copy, or looks the same unturned."""
        one, two = self._pictures.of_row(original), self._pictures.of_row(other)
        if one is None or two is None:
            return None
        hash_of_other = perceptual_hash(two, _WHOLE)
        found = [
            TurnedCopy(symmetry, (perceptual_hash(moved, _WHOLE) ^ hash_of_other).bit_count(), correlation(moved, two))
            for symmetry in Symmetry
            for moved in [turned(one, symmetry)]
        ]
        best = max(found, key=lambda copy: copy.likeness)
        if best.bits > self._bits or best.likeness < max(LIKENESS, correlation(one, two)):
            return None
        return best
