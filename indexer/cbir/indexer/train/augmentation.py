"""Random crops and flips of a batch of images, each an affine map, so that feature maps can be cut the same way."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["augment", "random_views", "sample_map"]

#: The logarithm of a crop's aspect ratio is drawn from plus or minus twice this.
_STRETCH = 0.15
#: Feature maps are sampled at this many points a side at least and averaged down: fewer would skip parts of them.
_LEAST_POINTS = 4


def random_views(count: int, min_area: float, generator: torch.Generator) -> Tensor:
    """Random crops with horizontal flips.

    Args:
        min_area: Least area of a crop, as a fraction of the image's area.

    Returns:
        (count, 2, 3) affine maps from coordinates in the view to those in the image, both -1..1, on the CPU.
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
        jitter: Contrast is multiplied by 1 ± ``jitter``; brightness is moved by up to half of it, each colour channel
            by up to 0.6 of it.

    Returns:
        (B, 3, size, size) float32.  Values may lie slightly outside 0..1: they are not clipped, as the network's
        normalisation follows.
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
    """Cut views out of feature maps.

    Args:
        maps: (B, D, S, S) feature maps of the whole images.
        views: (B, 2, 3) from :func:`random_views`.
        side: Number of locations a side in the result.

    Returns:
        (B, side * side, D), the locations row by row.
    """
    points = max(side, _LEAST_POINTS)
    grid = F.affine_grid(views.to(maps), [len(maps), maps.shape[1], points, points], align_corners=False)
    seen = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if points != side:
        seen = F.adaptive_avg_pool2d(seen, side)
    return seen.flatten(2).transpose(1, 2)
