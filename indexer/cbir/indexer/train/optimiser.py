"""The optimisers: Muon for the weights of hidden layers, AdamW for the other parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from cbir.indexer.train.network.layers import classifiers
from cbir.indexer.train.recipe import Recipe

__all__ = ["Muon", "make_optimisers", "orthogonalise", "uses_muon"]

_BETAS = (0.9, 0.98)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Move the singular values of a (rows, columns) matrix towards 1 by the quintic Newton-Schulz iteration."""
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    result: Tensor = x.T if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Muon: momentum orthogonalised by Newton-Schulz, for matrices and convolutions (as outputs x everything else).

    Method: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.  Written here because
    torch's Muon takes matrices only, and timm's always iterates in bf16, which takes thirty times as long as float32 on
    CPUs that emulate it.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                flat = orthogonalise(update.reshape(len(update), -1).float())
                # A tall matrix has more outputs than directions; a longer step makes each output move as far as in a
                # square one.
                flat = flat * max(1.0, flat.shape[0] / flat.shape[1]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(flat.reshape(parameter.shape).to(parameter), alpha=-group["lr"])


def uses_muon(name: str, parameter: Tensor, outside: Iterable[str]) -> bool:
    """Whether a parameter is the matrix or convolution of a hidden layer, which Muon is made for.

    Stem and head are not hidden layers; depthwise kernels and tables (position embeddings, attention biases) do not map
    one layer to the next.

    Args:
        outside: Prefixes of the names of the parameters in stem and head.
    """
    if parameter.ndim < 2 or parameter.shape[0] == 1 or parameter.shape[1] == 1 or "attention_bias" in name:
        return False
    return not any(name == prefix or name.startswith(f"{prefix}.") for prefix in outside)


def make_optimisers(network: nn.Module, objective: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Optimisers for the parameters of a timm network that require gradients, and for those of the objective.

    Returns:
        AdamW, and Muon if the recipe asks for it; the learning rates in their groups are the peaks of the schedule.
    """
    outside = _stem_and_head(network)
    muon: list[Tensor] = []
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim <= 1 or "attention_bias" in name:
            plain.append(parameter)
        elif recipe.optimizer == "muon" and uses_muon(name, parameter, outside):
            muon.append(parameter)
        else:
            decayed.append(parameter)
    for parameter in objective.parameters():
        (plain if parameter.ndim <= 1 else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=recipe.lr, betas=_BETAS)]
    if muon:
        optimisers.append(Muon(muon, lr=recipe.muon_lr, weight_decay=recipe.muon_decay))
    return optimisers


def _stem_and_head(network: nn.Module) -> list[str]:
    """Names of the first convolution or patch embedding, and of the classifier."""
    config = cast(dict[str, Any], getattr(network, "pretrained_cfg", {}) or {})
    names: list[str] = []
    for key in ("first_conv", "classifier"):
        value = config.get(key) or ()
        names.extend([value] if isinstance(value, str) else value)
    # The configuration names the head as in the released weights; in the network built here it may lie deeper.
    heads = classifiers(network)
    names.extend(name for name, module in network.named_modules() if any(module is head for head in heads))
    first = next((name for name, p in network.named_parameters() if p.ndim >= 2 and p.shape[1] == 3), None)
    return [*names, *([first] if first else [])]
