"""What is known of an image apart from its embeddings: its facts, or why it was left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbir.core.images import Box

__all__ = ["ImageFacts", "SkippedImage"]


@dataclass(frozen=True)
class ImageFacts:
    """What decoding an image yields: digest of its bytes, upright size, crop box and perceptual hash."""

    sha256: bytes
    width: int
    height: int
    crop: Box
    phash: int

    def to_row(self) -> list[int]:
        """Seven integers for the cache; :meth:`from_row` reads them."""
        signed = self.phash - (1 << 64) if self.phash >= 1 << 63 else self.phash
        box = self.crop
        return [self.width, self.height, box.left, box.top, box.right, box.bottom, signed]

    @classmethod
    def from_row(cls, sha256: bytes, row: NDArray[np.int64]) -> ImageFacts:
        """Inverse of :meth:`to_row`."""
        width, height, left, top, right, bottom, phash = (int(v) for v in row)
        return cls(sha256, width, height, Box(left, top, right, bottom), phash % (1 << 64))


@dataclass(frozen=True)
class SkippedImage:
    """An image that was left out, and why."""

    uri: str
    reason: str
    code: str
    stamp: str
