"""What turning and mirroring do to a picture, and to its perceptual hash."""

from __future__ import annotations

import numpy as np
import pytest
from images import pattern
from PIL import Image

from cbir.core.images import Box, Symmetry, perceptual_hash, turned, turned_hashes

#: Pillow turns against the clock.
BY_PILLOW = {
    Symmetry.ROTATE_90: Image.Transpose.ROTATE_270,
    Symmetry.ROTATE_180: Image.Transpose.ROTATE_180,
    Symmetry.ROTATE_270: Image.Transpose.ROTATE_90,
    Symmetry.MIRROR: Image.Transpose.FLIP_LEFT_RIGHT,
    Symmetry.FLIP: Image.Transpose.FLIP_TOP_BOTTOM,
    Symmetry.TRANSPOSE: Image.Transpose.TRANSPOSE,
    Symmetry.TRANSVERSE: Image.Transpose.TRANSVERSE,
}


def hash_of(pixels: np.ndarray) -> int:
    return perceptual_hash(pixels, Box(0, 0, pixels.shape[1], pixels.shape[0]))


def photo(seed: int) -> np.ndarray:
    """A smooth random picture, as photos are, higher than wide."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((160, 240), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("symmetry", Symmetry)
def test_pictures_are_turned_as_pillow_does(symmetry: Symmetry) -> None:
    picture = pattern(2, 7, 30).resize((30, 20))
    expected = np.asarray(picture.transpose(BY_PILLOW[symmetry]))
    assert np.array_equal(turned(np.asarray(picture), symmetry), expected)


@pytest.mark.parametrize("symmetry", Symmetry)
def test_the_hash_of_a_turned_picture_is_known_but_for_few_bits(symmetry: Symmetry) -> None:
    pictures = [photo(seed) for seed in range(40)]
    hashes = np.array([hash_of(picture) for picture in pictures], np.uint64)
    true = np.array([hash_of(np.ascontiguousarray(turned(one, symmetry))) for one in pictures], np.uint64)
    off = np.bitwise_count(turned_hashes(hashes, symmetry) ^ true)
    if symmetry is Symmetry.TRANSPOSE:
        assert np.quantile(off, 0.9) <= 2  # rounding alone
    assert np.median(off) <= 6
    assert np.median(np.bitwise_count(hashes ^ true)) > 20


def test_turns_add_up() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 50, dtype=np.uint64)

    def after(*steps: Symmetry) -> list[int]:
        found = hashes
        for step in steps:
            found = turned_hashes(found, step)
        return found.tolist()

    assert after(Symmetry.ROTATE_90, Symmetry.ROTATE_90) == after(Symmetry.ROTATE_180)
    assert after(Symmetry.ROTATE_90, Symmetry.ROTATE_270) == hashes.tolist()
    assert after(Symmetry.TRANSPOSE, Symmetry.MIRROR) == after(Symmetry.ROTATE_90)
    assert after(Symmetry.ROTATE_180, Symmetry.TRANSPOSE) == after(Symmetry.TRANSVERSE)
    assert after(Symmetry.MIRROR, Symmetry.FLIP) == after(Symmetry.ROTATE_180)
