"""Turned and mirrored copies among the images of a gallery.

Where to look is told by the hashes alone: what turning does to a hash is known but for a few bits.  Whether two images
are copies is told by their pixels: each is decoded and made small, one is turned, and they are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import Gallery, GalleryImage
from cbir.core.errors import CbirError
from cbir.core.files import read_uri
from cbir.core.images import Box, DecodeLimits, Symmetry, decode_image, perceptual_hash, turned, turned_hashes
from cbir.core.search import close_pairs

__all__ = ["LIKENESS", "TurnedCopies", "TurnedCopy"]

#: Least correlation of the pixels of a copy with those of the turned original.  Copies of photos (JPEG of quality 30,
#: halved, brightened by a fifth) reach 0.96, and most that lost 3 % at the edges; different photos of like things
#: whose hashes are close, such as motorcycles on white, reach 0.93.
LIKENESS = 0.95

#: The hash of a turned picture is known but for about so many bits.
_UNSURE_BITS = 4
_SIDE = 32
_WHOLE = Box(0, 0, _SIDE, _SIDE)
#: Least standard deviation of the pixels, of 255: flat pictures look the same however they are turned.
_LEAST_CONTRAST = 4.0

Small = NDArray[np.uint8]


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
    """Finds them; small pictures of what was compared are kept (3 KB each).

    Args:
        bits: Most bits in which the hashes of copies differ.
    """

    def __init__(self, gallery: Gallery, bits: int) -> None:
        self._gallery, self._bits = gallery, bits
        self._small: dict[int, Small | None] = {}

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
        one, two = self._picture(original), self._picture(other)
        if one is None or two is None:
            return None
        hash_of_other = perceptual_hash(two, _WHOLE)
        found = [
            TurnedCopy(symmetry, (perceptual_hash(moved, _WHOLE) ^ hash_of_other).bit_count(), _correlation(moved, two))
            for symmetry in Symmetry
            for moved in [turned(one, symmetry)]
        ]
        best = max(found, key=lambda copy: copy.likeness)
        if best.bits > self._bits or best.likeness < max(LIKENESS, _correlation(one, two)):
            return None
        return best

    def _picture(self, row: int) -> Small | None:
        """The content of an image, small; None if it cannot be read any more, or is flat."""
        if row not in self._small:
            self._small[row] = _small(self._gallery[row])
        return self._small[row]


def _small(image: GalleryImage) -> Small | None:
    try:
        decoded = decode_image(read_uri(image.uri), DecodeLimits())
    except (CbirError, OSError):
        return None
    height, width = decoded.pixels.shape[:2]
    box = image.crop.scaled(width / image.width, height / image.height)
    content = np.ascontiguousarray(decoded.pixels[box.top : box.bottom, box.left : box.right])
    if not content.size:
        return None
    small = np.asarray(cv2.resize(content, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), np.uint8)
    # Of each channel: a flat colour is flat.
    return small if small.std(axis=(0, 1)).max() >= _LEAST_CONTRAST else None


def _correlation(one: Small, other: Small) -> float:
    parts = [part.astype(np.float32) - part.mean(axis=(0, 1), dtype=np.float32) for part in (one, other)]
    return float((parts[0] * parts[1]).sum() / np.sqrt((parts[0] ** 2).sum() * (parts[1] ** 2).sum()))
