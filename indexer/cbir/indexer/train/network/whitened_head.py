"""The head of a distilled member: its pooled features, centred and whitened on the training images.

What a student learnt of its teachers lies in its features; a few directions of large variance drown the rest under
cosine.  Whitening gives every direction the same say, which on classes not trained on is worth more than the trained
head (Jegou and Chum, "Negative evidences and co-occurences in image retrieval: the benefit of PCA and whitening", ECCV
2012).  It is one linear map, so it becomes the network's classifier.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cbir.core.ensemble import InputFormat

__all__ = ["whiten_head", "whitening_map"]

#: Images that are enough to estimate a covariance from.
SAMPLE = 6000
#: Added to the eigenvalues, relative to their mean: directions without variance are noise, and stay small.
RIDGE = 1e-3
_BATCH = 64


def whitening_map(features: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Weight (D, D) and bias (D,) that centre and whiten (N, D) features, components by falling variance."""
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
    """Put whitening in the place of the network's linear head.  The network must be on the CPU; it ends in eval mode.

    Args:
        pixels: (N, H, W, 3) uint8 training images.
        rows: Those to estimate from; at most ``SAMPLE`` of them are used.
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
    # Networks made for distillation (LeViT) have two, whose mean is the output.
    for head in heads if isinstance(heads, tuple) else (heads,):
        norm = getattr(head, "bn", None)
        if norm is not None:
            # A norm before the linear map becomes the identity.
            norm.reset_parameters()
            norm.running_var.fill_(1 - norm.eps)
        linear = head if norm is None else head.linear
        linear.weight.copy_(weight.view_as(linear.weight))
        linear.bias.copy_(bias)
