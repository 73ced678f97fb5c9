"""Which layers of a network are trained: its last blocks, while what comes before stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from cbir.core.errors import ConfigurationError, EnsembleError

__all__ = ["Trained", "block_parameters", "classifiers", "keep_frozen_norms", "parse_blocks", "train_last_blocks"]


@dataclass(frozen=True)
class Trained:
    """What :func:`train_last_blocks` left trainable: blocks and parameters, each of how many."""

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


def parse_blocks(text: str) -> int | float:
    """Read a number of last blocks (``3``), a share of all blocks (``0.5``), or ``all``.

    Raises:
        ValueError: None of these.
    """
    if text == "all":
        return 1.0
    value = float(text) if "." in text else int(text)
    if value < 0 or (isinstance(value, float) and value > 1):
        raise ValueError(f"{text} is neither a number of blocks, nor a share from 0.0 to 1.0, nor 'all'")
    return value


def block_parameters(network: nn.Module) -> list[list[str]]:
    """Names of the parameters of each block of a network of timm, the first one being the stem.

    The blocks are those that timm lists for layer-wise learning rates, each a residual block or a transformer layer.
    The classifier and norms behind the last block belong to no block.

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


def train_last_blocks(network: nn.Module, wanted: float) -> Trained:
    """Freeze a network but for its last blocks; what lies behind them (norm, classifier) is always trained.

    Args:
        wanted: A whole number of blocks, or as a float (0.0 to 1.0) their share, rounded up.

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
    return Trained(total if everything else count, total, sum(n for n, on in sizes if on), sum(n for n, _ in sizes))


def keep_frozen_norms(network: nn.Module) -> None:
    """Put batch norms whose parameters are frozen into eval mode; call it after every ``train()``.

    Left in training mode they would go on changing their statistics, and with them the layers that nobody trains.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()


def classifiers(network: nn.Module) -> list[nn.Module]:
    """The linear heads of a network of timm; distilled transformers have two."""
    found = cast(Callable[[], Any], network.get_classifier)()
    heads = found if isinstance(found, tuple) else (found,)
    return [head for head in heads if isinstance(head, nn.Module)]


def _blocks_or_none(network: nn.Module) -> list[list[str]]:
    try:
        return block_parameters(network)
    except EnsembleError:
        return []
