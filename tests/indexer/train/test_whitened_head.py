"""The head of a distilled member: whitening as one linear map in the classifier's place."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from cbir.core.ensemble import InputFormat
from cbir.indexer.train.network.whitened_head import whiten_head, whitening_map


def test_whitening_by_hand() -> None:
    # Variance 4 along the first axis and 1 along the second, mean (1, 0): the map halves x - 1 and keeps y.
    features = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [1.0, 2**0.5], [1.0, -(2**0.5)]]) * torch.tensor([[1.0, 1.0]])
    # Covariances: x: (4 + 4) / 4 = 2, y: (2 + 2) / 4 = 1.
    weight, bias = whitening_map(features, ridge=0.0)
    white = features @ weight.T + bias
    np.testing.assert_allclose((white.T @ white / 4).numpy(), np.eye(2), atol=1e-5)
    np.testing.assert_allclose(white.mean(dim=0).numpy(), 0, atol=1e-6)
    np.testing.assert_allclose(white.abs()[:, 0].numpy(), [2**0.5, 2**0.5, 0, 0], atol=1e-5)


def test_a_direction_without_variance_stays_small() -> None:
    features = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1.0, 1e-6])
    weight, bias = whitening_map(features)
    assert (features @ weight.T + bias)[:, 2].abs().max() < 1e-3


@pytest.mark.parametrize(
    ("model", "options", "size"),
    [
        ("resnetv2_18", {"channels": [8, 16], "layers": [1, 1], "stem_chs": 8}, 32),
        ("convnext_atto", {"dims": [8, 16], "depths": [1, 1], "head_norm_first": True}, 32),
        ("levit_128s", {"img_size": 64, "embed_dim": [16, 32], "num_heads": [1, 2], "depth": [1, 1], "key_dim": 8}, 64),
    ],
)
def test_the_networks_own_output_becomes_white(model: str, options: dict[str, object], size: int) -> None:
    if model == "convnext_atto":
        options = {"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "head_norm_first": True}
    torch.manual_seed(0)
    network = timm.create_model(model, num_classes=5, **options).eval()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (80, size, size, 3), dtype=np.uint8) // rng.integers(1, 6, (80, 1, 1, 3), np.uint8)
    form = InputFormat(size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic")
    whiten_head(network, pixels, np.arange(80), size, form)
    with torch.no_grad():
        out = network((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25)
    assert out.shape == (80, network.num_features)
    covariance = np.cov(out.numpy().T, bias=True)
    np.testing.assert_allclose(out.mean(dim=0).numpy(), 0, atol=1e-2)
    # The leading directions have variance one (the ridge keeps those of little variance below it).
    assert covariance[0, 0] == pytest.approx(1, abs=0.05)
    off = covariance - np.diag(np.diag(covariance))
    assert abs(off).max() < 0.05
