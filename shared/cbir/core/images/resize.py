"""Resize: the content of an image, resampled to the square that a model sees."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cbir.core.images.crop import Box

__all__ = ["prepare"]

#: Pillow's filters, by the names in :class:`cbir.core.ensemble.InputSpec`.
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}
#: For these torch computes the same as Pillow, four times as fast, with the processor's vector instructions.
_VECTORISED = ("bilinear", "bicubic")


def prepare(pixels: NDArray[np.uint8], box: Box, size: int, interpolation: str) -> NDArray[np.uint8]:
    """Cut ``box`` out of (H, W, 3) uint8 pixels and resample it to (size, size, 3), ignoring the aspect ratio.

    This keeps the whole content; a centre crop would lose both ends of wide photos.  Every pixel of the region
    counts, as with Pillow's filters, from which the result differs only by rounding.
    """
    region = pixels[box.top : box.bottom, box.left : box.right]
    if interpolation not in _VECTORISED:
        resized = Image.fromarray(np.ascontiguousarray(region)).resize((size, size), _RESAMPLING[interpolation])
        return np.asarray(resized, dtype=np.uint8)
    # A permuted view, which torch recognises as channels last and does not rearrange.
    batch = torch.tensor(region)[None].permute(0, 3, 1, 2)
    scaled = torch.nn.functional.interpolate(batch, (size, size), mode=interpolation, antialias=True)
    result: NDArray[np.uint8] = scaled[0].permute(1, 2, 0).numpy()
    return result
