"""Resampling agrees with Pillow's filters, whoever computes it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cbir.core.images import Box, prepare


def smooth(width: int, height: int) -> np.ndarray:
    """Waves and an edge, as photos have them; not writeable, as decoded images are."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [127 + 90 * np.sin(x / (5 + c) + c) * np.cos(y / (7 - c)) for c in range(3)]
    pixels = np.stack(waves, axis=-1)
    pixels[:, width // 2 :] += 40
    result = np.clip(pixels, 0, 255).astype(np.uint8)
    result.flags.writeable = False
    return result


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "area"])
@pytest.mark.parametrize("size", [40, 200])
@pytest.mark.parametrize("box", [Box(0, 0, 130, 90), Box(11, 7, 120, 60), Box(3, 5, 4, 6)], ids=["all", "part", "dot"])
def test_resampling_is_pillows(interpolation: str, size: int, box: Box) -> None:
    pixels = smooth(130, 90)
    found = prepare(pixels, box, size, interpolation)
    region = Image.fromarray(pixels).crop((box.left, box.top, box.right, box.bottom))
    resampling = Image.Resampling["BOX" if interpolation == "area" else interpolation.upper()]
    expected = np.asarray(region.resize((size, size), resampling))
    assert found.shape == (size, size, 3)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    apart = np.abs(found.astype(int) - expected)
    assert apart.max() <= 2
    assert apart.mean() < 0.05
