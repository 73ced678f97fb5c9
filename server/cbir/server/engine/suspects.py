"""Gallery images that may be near duplicates of a query: those with close hashes, and what their pixels tell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import Gallery
from cbir.core.images import Box, DecodeLimits, Decoder, perceptual_hash, small_picture
from cbir.core.search import SmallPictures, close_hashes

__all__ = ["SuspectFinder", "Suspects"]

#: Gallery rows, in how many bits their hashes differ, and the correlation of their pixels (NaN where it is not known).
Suspects = tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.float32]]

#: Most suspects whose pixels are looked at, those with the closest hashes: each costs reading and decoding an image.
_LOOKED_AT = 8


class SuspectFinder:
    """Finds them in one gallery.  Thread-safe.

    Args:
        decoder: Where images of the gallery are decoded.
        limits: Larger images are not looked at.
    """

    def __init__(self, gallery: Gallery, decoder: Decoder, limits: DecodeLimits) -> None:
        self._gallery = gallery
        self._pictures = SmallPictures(gallery, decoder, limits)

    def of_image(self, pixels: NDArray[np.uint8], box: Box) -> Suspects:
        """Those of a picture, cropped."""
        rows, bits_off = close_hashes(self._gallery.phashes, perceptual_hash(pixels, box))
        return rows, bits_off, self._likeness(small_picture(pixels, box), rows, bits_off)

    def of_row(self, row: int) -> Suspects:
        """Those of an image of the gallery, itself among them."""
        rows, bits_off = close_hashes(self._gallery.phashes, int(self._gallery.phashes[row]))
        # An image that nothing else is close to need not be read.
        small = self._pictures.of_row(row) if len(rows) > 1 else None
        return rows, bits_off, self._likeness(small, rows, bits_off)

    def _likeness(
        self, small: NDArray[np.uint8] | None, rows: NDArray[np.int64], bits_off: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        found = np.full(len(rows), np.nan, np.float32)
        closest = np.argsort(bits_off, kind="stable")[:_LOOKED_AT]
        found[closest] = self._pictures.likeness(small, rows[closest])
        return found
