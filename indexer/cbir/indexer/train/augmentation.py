"""Random views of a batch of images, as one affine resampling; feature maps can be resampled by the same views."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["augment", "random_views", "sample_map"]

#: Half-width of the logarithm of a crop's stretch in x against y.
_STRETCH = 0.15
#: A map is sampled at no fewer points a side than this, then averaged: a coarser grid would skip parts of it.
_LEAST_POINTS = 4


def random_views(count: int, min_area: float, generator: torch.Generator) -> Tensor:
    """Random crops with horizontal flips, as (count, 2, 3) affine maps from view to image, both in -1..1.

    Args:
        min_area: Least area of a crop, as a fraction of the image's.
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=generator)

    side = uniform(min_area, 1.0).sqrt()
    stretch = uniform(-_STRETCH, _STRETCH).exp()
    scale_x, scale_y = (side * stretch).clamp(max=1.0), (side / stretch).clamp(max=1.0)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    views = torch.zeros(count, 2, 3)
    views[:, 0, 0] = scale_x * flip
    views[:, 1, 1] = scale_y
    views[:, 0, 2] = uniform(-1, 1) * (1 - scale_x)
    views[:, 1, 2] = uniform(-1, 1) * (1 - scale_y)
    return views


def augment(images: Tensor, views: Tensor, size: int, jitter: float, generator: torch.Generator) -> Tensor:
    """Cut views out of images and vary their contrast, brightness and colour.

    Args:
        images: (B, 3, H, W) float32 in 0..1.
        views: (B, 2, 3) from :func:`random_views`, on the CPU.
        size: Side of the result in pixels.
        jitter: Half-width of the factor of contrast, and twice that of the term of brightness.

    Returns:
        (B, 3, size, size) float32, not clipped: jitter may leave 0..1 slightly, as normalisation follows.
    """
    count, device = len(images), images.device

    def uniform(width: float, channels: int = 1) -> Tensor:
        return torch.empty(count, channels, 1, 1).uniform_(-width, width, generator=generator).to(device)

    grid = F.affine_grid(views.to(device), [count, 3, size, size], align_corners=False)
    out = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if jitter == 0:
        return out
    mean = out.mean(dim=(1, 2, 3), keepdim=True)
    return (out - mean) * (1 + uniform(jitter)) + mean + uniform(jitter / 2) + uniform(0.6 * jitter, 3)


def sample_map(maps: Tensor, views: Tensor, side: int) -> Tensor:
    """Feature maps as the views see them.

    Args:
        maps: (B, D, S, S) of the whole images.
        views: (B, 2, 3) from :func:`random_views`.
        side: Locations a side of the result.

    Returns:
        (B, side * side, D), row by row.
    """
    points = max(side, _LEAST_POINTS)
    grid = F.affine_grid(views.to(maps), [len(maps), maps.shape[1], points, points], align_corners=False)
    seen = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if points != side:
        seen = F.adaptive_avg_pool2d(seen, side)
    return seen.flatten(2).transpose(1, 2)
