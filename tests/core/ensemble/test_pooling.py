"""Pooling by the generalised mean in place of a network's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from images import pattern
from precision import f16, f32

from cbir.core.ensemble import InputSpec, MemberSpec, build_network, load_embedder
from cbir.core.ensemble.backends.timm import GeneralisedMean
from cbir.core.errors import EnsembleError


def test_the_cubic_mean_by_hand() -> None:
    # Cubes of 1, 3, 0 and -5 (which counts as 0) have the mean 28 / 4.
    x = torch.tensor([[[[1.0, 3.0], [0.0, -5.0]]]])
    torch.testing.assert_close(GeneralisedMean()(x), torch.tensor([[7.0 ** (1 / 3)]]))


def test_a_network_is_pooled_by_it_and_its_weights_are_the_same() -> None:
    member = MemberSpec("m", "timm", "test_resnet", options={"global_pool": "gem"}, input=InputSpec(32))
    plain, _ = build_network(MemberSpec("m", "timm", "test_resnet", input=InputSpec(32)))
    pooled, _ = build_network(member)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = plain.eval().forward_features(x).clamp(min=0).pow(3).mean((2, 3)).pow(1 / 3)
        torch.testing.assert_close(pooled.eval()(x), expected, rtol=f16(2), atol=f32(2048))


def test_every_runtime_pools_alike() -> None:
    member = MemberSpec("m", "timm", "test_resnet", options={"global_pool": "gem"}, input=InputSpec(32))
    batch = np.stack([np.asarray(pattern(kind, 0).resize((32, 32)).convert("RGB")) for kind in range(2)])
    eager, converted = (load_embedder(member, "cpu", runtime, "f32").embed(batch) for runtime in ("torch", "openvino"))
    np.testing.assert_allclose(np.sum(eager * converted, axis=1), 1, atol=f32(2048))


def test_networks_without_a_map_to_pool_are_refused() -> None:
    member = MemberSpec("m", "timm", "test_vit", options={"global_pool": "gem", "img_size": 32}, input=InputSpec(32))
    with pytest.raises(EnsembleError, match="leave it out"):
        build_network(member)
