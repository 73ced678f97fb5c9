"""Gallery images as small pictures, whose pixels tell whether two images show the same picture.

Members see a copy at half the size or of low quality as somewhat another image, some much more so than others.  Pixels
do not: made small, copies are the same but for rounding.  They can only be compared where the files can be read.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import Gallery
from cbir.core.errors import CbirError
from cbir.core.images import DecodeLimits, Decoder, InProcessDecoder, correlation, small_picture

__all__ = ["SmallPictures"]

#: Pictures that are kept, of 3 KB each.
_KEPT = 4096


class SmallPictures:
    """The small pictures of a gallery, read when they are asked for.  Thread-safe.

    Args:
        decoder: Where images are decoded; None: on the thread that asks.
        limits: Larger images are not read.
    """

    def __init__(self, gallery: Gallery, decoder: Decoder | None = None, limits: DecodeLimits | None = None) -> None:
        self._gallery, self._decoder = gallery, decoder or InProcessDecoder()
        self._limits = limits or DecodeLimits()
        self.of_row = lru_cache(_KEPT)(self._read)

    def likeness(self, picture: NDArray[np.uint8] | None, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(S,) correlation of a small picture with those of rows; NaN where one is flat or cannot be read."""
        found = np.full(len(rows), np.nan, np.float32)
        if picture is not None:
            for place, row in enumerate(rows.tolist()):
                other = self.of_row(row)
                if other is not None:
                    found[place] = correlation(picture, other)
        return found

    def _read(self, row: int) -> NDArray[np.uint8] | None:
        image = self._gallery[row]
        try:
            decoded = self._decoder.decode(self._gallery.read_bytes(row), self._limits)
        except (CbirError, OSError):
            return None
        height, width = decoded.pixels.shape[:2]
        return small_picture(decoded.pixels, image.crop.scaled(width / image.width, height / image.height))
