"""A head for a distilled network that centres and whitens its pooled features.

A few directions of large variance dominate the cosine similarity of a student's features.  Whitening gives every
direction the same variance; on classes that were not trained on, whitened features retrieve better than the trained
head (method: Jegou and Chum, "Negative evidences and co-occurences in image retrieval: the benefit of PCA and
whitening", ECCV 2012).  Whitening is a linear map, so it is stored as the network's classifier.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cbir.core.ensemble import InputFormat

__all__ = ["whiten_head", "whitening_map"]

#: Most images that the covariance is estimated from.
SAMPLE = 6000
#: Added to the eigenvalues, relative to their mean: directions with hardly any variance are noise, not to be amplified.
RIDGE = 1e-3
_BATCH = 64


def whitening_map(features: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Weight (D, D) and bias (D,) of the linear map that centres and whitens (N, D) features.

    The outputs are principal components by descending variance.
    """
    x = features.double()
    mean = x.mean(dim=0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    weight = (vectors / (values + ridge * values.mean() + 1e-12).sqrt()).T
    return weight.float(), (-weight @ mean).float()


@torch.no_grad()
def whiten_head(
    network: nn.Module, pixels: NDArray[np.uint8], rows: NDArray[np.int64], size: int, form: InputFormat
) -> None:
    """Replace the network's linear head by whitening.  The network must be on the CPU; it is left in eval mode.

    Args:
        pixels: (N, H, W, 3) uint8 training images.
        rows: Row numbers of the images to estimate the covariance from; at most ``SAMPLE`` of them are used.
        size: Side of the network's input.
    """
    network.eval()
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(rows, SAMPLE, replace=False))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (form.mean, form.std))
    pooled = []
    for start in range(0, len(rows), _BATCH):
        images = torch.from_numpy(np.array(pixels[rows[start : start + _BATCH]])).permute(0, 3, 1, 2).float() / 255
        images = nn.functional.interpolate(images, (size, size), mode="bicubic", antialias=True)
        features = network.forward_features((images - mean) / std)  # type: ignore[operator]
        pooled.append(network.forward_head(features, pre_logits=True).flatten(1))  # type: ignore[operator]
    weight, bias = whitening_map(torch.cat(pooled))
    network.reset_classifier(len(bias))  # type: ignore[operator]
    heads = network.get_classifier()  # type: ignore[operator]
    # Networks made for distillation (LeViT) have two heads and return the mean of both.
    for head in heads if isinstance(heads, tuple) else (heads,):
        norm = getattr(head, "bn", None)
        if norm is not None:
            # The head's own batch norm, before the linear map, is made the identity.
            norm.reset_parameters()
            norm.running_var.fill_(1 - norm.eps)
        linear = head if norm is None else head.linear
        linear.weight.copy_(weight.view_as(linear.weight))
        linear.bias.copy_(bias)
