"""Gallery images as the models see them, to calibrate the quantisation of models to 8-bit integers."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts.index_version import IndexVersion
from cbir.core.ensemble import Pictures
from cbir.core.errors import ImageError
from cbir.core.files import read_uri
from cbir.core.images import decode_image, find_content, prepare

__all__ = ["gallery_pictures"]

#: How many images: enough to find the ranges of activations; more only take longer.
_COUNT = 128


def gallery_pictures(version: IndexVersion) -> Pictures:
    """Up to 128 images spread over the gallery, cropped and resized as queries are; unreadable ones are left out."""

    def pictures(size: int, interpolation: str) -> NDArray[np.uint8]:
        gallery = version.gallery
        rows = np.unique(np.linspace(0, len(gallery) - 1, _COUNT).round().astype(int))
        # Neighbouring rows show similar things.  The first of these images also check the quantised model, so they are
        # shuffled to make those a mixed sample.
        rows = np.random.default_rng(0).permutation(rows)
        found = []
        for row in rows.tolist():
            with suppress(ImageError):
                pixels = decode_image(read_uri(gallery[row].uri)).pixels
                box = find_content(pixels, version.manifest.ensemble.crop)
                found.append(prepare(pixels, box, size, interpolation))
        return np.stack(found) if found else np.zeros((0, size, size, 3), np.uint8)

    return pictures
