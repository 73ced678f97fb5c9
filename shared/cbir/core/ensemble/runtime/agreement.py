"""Agreement: does a runtime compute the same embeddings as eager float32?  Checked on two built-in pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["AGREEMENT", "disagreement", "probe"]

#: Least cosine between the embeddings of a runtime and of eager float32.
AGREEMENT = 0.999


def probe(size: int) -> NDArray[np.uint8]:
    """(2, size, size, 3) uint8 RGB: a drawn landscape, and the same one dark and turned by 180 degrees.

    Like photos, it has smooth areas, edges and fine texture.  It is computed without a random generator, so that later
    releases can compare with stored embeddings of it.
    """
    down, right = (axis / size for axis in np.mgrid[0:size, 0:size].astype(np.float64))
    # Coarse and fine grain, from a multiplicative hash of the pixel's position.
    place = np.arange(size * size, dtype=np.uint64).reshape(size, size)
    fine = ((place * np.uint64(2654435761) >> np.uint64(9)) & np.uint64(255)).astype(np.float64) / 255 - 0.5
    coarse = np.kron(fine[: -(-size // 8), : -(-size // 8)], np.ones((8, 8)))[:size, :size]
    picture = np.stack([90 + 90 * down, 140 + 70 * down, 230 - 30 * down], axis=-1)
    sun = np.hypot(down - 0.22, right - 0.7)
    picture[sun < 0.1] = (255, 236, 150)
    hills = ((0.55, 0.07, 9.0, (96, 112, 140)), (0.68, 0.05, 14.0, (70, 110, 66)), (0.82, 0.03, 23.0, (124, 96, 58)))
    for height, swing, waves, colour in hills:
        below = down > height + swing * np.sin(waves * right + 5 * height)
        shade = 1 + 0.5 * coarse + 0.35 * fine - 0.4 * (down - height)
        picture[below] = np.multiply.outer(shade, colour)[below]
    trunk = (np.abs(right - 0.27) < 0.018) & (down > 0.45) & (down < 0.86)
    picture[trunk] = (60, 42, 30)
    crown = np.hypot(1.2 * (down - 0.4), right - 0.27) < 0.14 + 0.04 * coarse
    picture[crown] = np.multiply.outer(0.8 + 0.6 * fine, (46, 120, 52))[crown]
    day = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return np.stack([day, (day[::-1, :, ::-1] // 3).astype(np.uint8)])


def disagreement(embeddings: NDArray[np.float32], reference: NDArray[np.float32]) -> str | None:
    """How embeddings differ too much from those of eager float32; None where they agree.

    Args:
        embeddings: (B, D) float32 unit vectors.
        reference: (B, D) the embeddings of the same images by eager float32.
    """
    if embeddings.shape != reference.shape:
        return f"embeddings of {embeddings.shape[1]} components where eager float32 gives {reference.shape[1]}"
    cosine = float((embeddings * reference).sum(axis=1).min())
    # The comparison is false for NaN, which so counts as disagreement.
    return None if cosine >= AGREEMENT else f"cosine {cosine:.4f} to eager float32, less than {AGREEMENT}"
