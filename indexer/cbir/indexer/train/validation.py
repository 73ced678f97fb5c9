"""MAP@10 of a network on held-out images: each is searched among the others by cosine similarity."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cbir.core.ensemble import InputFormat
from cbir.core.evaluation import average_precision
from cbir.indexer.train.precision import Precision

__all__ = ["embed", "leave_one_out_map", "normalised"]


def normalised(batch: NDArray[np.uint8], device: str) -> Tensor:
    """(B, H, W, 3) uint8 images as (B, 3, H, W) float32 in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(batch)).to(device).permute(0, 3, 1, 2).float().div_(255)


def embed(
    network: nn.Module, pixels: NDArray[np.uint8], rows: NDArray[np.int64], size: int, form: InputFormat,
    precision: Precision, batch: int = 64,
) -> NDArray[np.float32]:  # fmt: skip
    """Embed images with a network in eval mode.

    Args:
        pixels: (N, side, side, 3) uint8; resampled if side is not ``size``.
        rows: Which of them to embed.
        size: Side of the network's input in pixels.

    Returns:
        (len(rows), D) float32 unit vectors.
    """
    network.eval()
    mean = torch.tensor(form.mean, device=precision.device).view(1, 3, 1, 1)
    std = torch.tensor(form.std, device=precision.device).view(1, 3, 1, 1)
    out = []
    with torch.inference_mode(), precision.autocast():
        for start in range(0, len(rows), batch):
            x = normalised(pixels[rows[start : start + batch]], precision.device)
            if x.shape[-1] != size:
                x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
            x = ((x - mean) / std).contiguous(memory_format=torch.channels_last)
            out.append(F.normalize(network(x).flatten(1).float(), dim=1).cpu().numpy())
    return np.concatenate(out)


def leave_one_out_map(unit: NDArray[np.float32], codes: NDArray[np.int64]) -> float:
    """MAP@10 with every image as a query once and all others as the gallery.

    Args:
        unit: (N, D) unit vectors.
        codes: (N,) class numbers.
    """
    counts = np.bincount(codes)
    values = []
    for start in range(0, len(unit), 256):
        scores = unit[start : start + 256] @ unit.T
        own = np.arange(len(scores))
        scores[own, start + own] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, : min(10, len(unit) - 1)]
        for query, row in enumerate(best, start):
            if (others := int(counts[codes[query]]) - 1) > 0:
                values.append(average_precision(codes[row] == codes[query], others, 10))
    return float(np.mean(values)) if values else 0.0
