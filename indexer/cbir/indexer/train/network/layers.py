"""Which layers of a network are trained: its last blocks; the layers before them are frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from cbir.core.errors import ConfigurationError, EnsembleError

__all__ = ["TrainedBlocks", "block_parameters", "classifiers", "keep_frozen_norms", "train_last_blocks"]


@dataclass(frozen=True)
class TrainedBlocks:
    """How many blocks and parameters :func:`train_last_blocks` left trainable, and how many the network has."""

    blocks: int
    of_blocks: int
    parameters: int
    of_parameters: int

    def __str__(self) -> str:
        share = self.parameters / max(1, self.of_parameters)
        return (
            f"training the last {self.blocks} of {self.of_blocks} blocks: {self.parameters / 1e6:.2f} of "
            f"{self.of_parameters / 1e6:.2f} million parameters ({share:.0%})"
        )


def block_parameters(network: nn.Module) -> list[list[str]]:
    """Names of the parameters of each block of a timm network; the first block is the stem.

    The blocks are the groups that timm defines for layer-wise learning rates: residual blocks or transformer layers.
    The classifier and the norms after the last block belong to no block.

    Raises:
        EnsembleError: timm does not know the blocks of this network.
    """
    from timm.models import group_parameters

    try:
        matcher = cast(Callable[..., Any], network.group_matcher)(coarse=False)
        groups: dict[int, list[str]] = group_parameters(network, matcher)
    except (AttributeError, NotImplementedError, AssertionError) as error:
        raise EnsembleError(
            f"timm does not say what the blocks of {type(network).__name__} are: train all of it with "
            "--train-blocks all",
            reason="BLOCKS_UNKNOWN",
        ) from error
    blocks = [groups[key] for key in sorted(groups)]
    sizes = {name: parameter.ndim for name, parameter in network.named_parameters()}
    own = {id(p) for module in classifiers(network) for p in module.parameters()}
    head = {name for name, parameter in network.named_parameters() if id(parameter) in own}
    blocks = [[name for name in block if name not in head] for block in blocks]
    while blocks and all(sizes[name] <= 1 for name in blocks[-1]):
        blocks.pop()
    return [block for block in blocks if block]


def train_last_blocks(network: nn.Module, wanted: float) -> TrainedBlocks:
    """Freeze all of a network except its last blocks and what follows them (norm, classifier).

    Args:
        wanted: An int is a number of blocks, a float (0.0 to 1.0) a share of all blocks, rounded up.

    Raises:
        ConfigurationError: The network has fewer blocks.
        EnsembleError: timm does not know the blocks of this network.
    """
    everything = isinstance(wanted, float) and wanted >= 1
    blocks = [] if everything else block_parameters(network)
    count = -int(-wanted * len(blocks) // 1) if isinstance(wanted, float) else wanted
    if count > len(blocks):
        raise ConfigurationError(
            f"--train-blocks {wanted}: the network has {len(blocks)} blocks, the stem among them", reason="BAD_RECIPE"
        )
    frozen = {name for block in blocks[: len(blocks) - count] for name in block}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    total = len(blocks) if blocks else len(_blocks_or_none(network))
    return TrainedBlocks(
        total if everything else count, total, sum(n for n, on in sizes if on), sum(n for n, _ in sizes)
    )


def keep_frozen_norms(network: nn.Module) -> None:
    """Put batch norms whose parameters are frozen into eval mode; call it after every ``train()``.

    In training mode they would go on updating their statistics, and so change the output of frozen layers.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()


def classifiers(network: nn.Module) -> list[nn.Module]:
    """The linear heads of a timm network: none, one, or two in transformers made for distillation (LeViT, DeiT)."""
    found = cast(Callable[[], Any], network.get_classifier)()
    heads = found if isinstance(found, tuple) else (found,)
    return [head for head in heads if isinstance(head, nn.Module)]


def _blocks_or_none(network: nn.Module) -> list[list[str]]:
    try:
        return block_parameters(network)
    except EnsembleError:
        return []
