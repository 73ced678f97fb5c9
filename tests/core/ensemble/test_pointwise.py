"""Linear layers as convolutions: the same sums, and nothing rearranged between two of them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import timm
import torch
from precision import f32

from cbir.core.ensemble.runtime.openvino import import_openvino, openvino_core
from cbir.core.ensemble.runtime.pointwise import as_convolutions, other_products


def converted(module: torch.nn.Module, *shape: int) -> Any:
    module.eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = import_openvino().convert_model(module, example_input=torch.zeros(2, *shape))
    model.reshape([-1, *shape])
    return model


def run(model: Any, images: np.ndarray) -> np.ndarray:
    return np.array(openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([images])[0])


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def kinds(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


class QuickGelu(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = torch.nn.Parameter(torch.arange(1.0, 9.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


@pytest.mark.parametrize("between", [torch.nn.GELU(), torch.nn.ReLU(), torch.nn.Hardswish(), QuickGelu(), Scaled()])
def test_what_lies_between_two_products_is_not_rearranged(between: torch.nn.Module) -> None:
    torch.manual_seed(0)
    model = converted(torch.nn.Sequential(torch.nn.Linear(4, 8), between, torch.nn.Linear(8, 6)), 5, 4)
    expected = run(model, drawn(3, 5, 4))
    assert as_convolutions(model) == 2
    np.testing.assert_allclose(run(model, drawn(3, 5, 4)), expected, atol=f32(256))
    # To channels first before the first, and back behind the last.
    assert (kinds(model).count("Transpose"), kinds(model).count("MatMul")) == (2, 0)


def test_what_mixes_channels_stays_where_it_is() -> None:
    torch.manual_seed(0)
    model = converted(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 6)), 5, 4)
    expected = run(model, drawn(3, 5, 4))
    assert as_convolutions(model) == 2
    np.testing.assert_allclose(run(model, drawn(3, 5, 4)), expected, atol=f32(256))
    assert kinds(model).count("Transpose") == 4


class Residual(torch.nn.Module):
    """A sum of what was lifted and what was not, and of a constant that is one number a token."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.places = torch.nn.Parameter(torch.arange(20.0).view(1, 5, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x) + self.places) + x


def test_sums_with_other_things_are_left_alone() -> None:
    torch.manual_seed(0)
    model = converted(Residual(), 5, 4)
    expected = run(model, drawn(3, 5, 4))
    assert as_convolutions(model) == 2
    np.testing.assert_allclose(run(model, drawn(3, 5, 4)), expected, rtol=f32(256), atol=f32(256))


class Raised(torch.nn.Module):
    """A constant of four dimensions makes (B, T, C) into (1, B, T, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias = (
            torch.nn.Linear(4, 4, bias=False),
            torch.nn.Parameter(torch.arange(4.0).view(1, 1, 1, 4)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.relu(self.first(x)) * self.bias).permute(0, 3, 1, 2)


def test_what_gains_a_dimension_is_left_alone() -> None:
    torch.manual_seed(0)
    model = converted(Raised(), 5, 4)
    expected = run(model, drawn(3, 5, 4))
    assert expected.shape == (1, 4, 3, 5)
    assert as_convolutions(model) == 1
    np.testing.assert_allclose(run(model, drawn(3, 5, 4)), expected, atol=f32(256))


def test_heads_and_convolutions_stay() -> None:
    model = converted(timm.create_model("test_resnet", num_classes=7), 3, 32, 32)
    before = kinds(model)
    assert as_convolutions(model) == 0
    assert kinds(model) == before
    assert len(other_products(model)) == before.count("MatMul") == 1


def test_attention_is_told_from_linear_layers() -> None:
    layer = torch.nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True)
    model = converted(layer, 5, 8)
    others = other_products(model)
    # Of queries, keys and values together, or each; out; and the two behind the attention.
    assert as_convolutions(model) in (4, 6)
    assert other_products(model) == others
    assert kinds(model).count("MatMul") == len(others)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("test_vit", 160, {}),
        ("levit_128s", 64, {"img_size": 64}),
        ("convnext_atto", 64, {"conv_mlp": False}),
        ("swin_tiny_patch4_window7_224", 64, {"img_size": 64, "window_size": 4, "depths": (1, 1, 1, 1)}),
    ],
)
def test_whole_networks_compute_what_they_did(name: str, size: int, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = converted(timm.create_model(name, num_classes=8, **options), 3, size, size)
    images = drawn(2, 3, size, size)
    expected = run(model, images)
    assert as_convolutions(model) > 4
    np.testing.assert_allclose(run(model, images), expected, atol=f32(256) * np.abs(expected).max())
