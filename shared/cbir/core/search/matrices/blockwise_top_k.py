"""Top k of the product with all rows, which is computed in one piece or block by block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["best_of", "best_rows"]


def best_rows(
    products: torch.Tensor, count: int, allowed: NDArray[np.bool_] | None, start: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The top ``count`` of one block of rows, best first.

    Args:
        products: (B, K) of the K rows from ``start`` on; overwritten where ``allowed`` is given.
        allowed: (N,) rows that may be listed, or None for all.

    Returns:
        (B, count) row numbers and products, all K where the block is smaller; rows that are not allowed have -inf.
    """
    width = products.shape[1]
    if allowed is not None:
        blocked = torch.from_numpy(~allowed[start : start + width]).to(products.device)
        products = products.masked_fill_(blocked, -torch.inf)
    found = torch.topk(products, min(count, width))
    return found.indices + start if start else found.indices, found.values.float()


def best_of(
    found: Sequence[tuple[torch.Tensor, torch.Tensor]], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The top ``count`` of all, from each block's :func:`best_rows`: (B, count) rows and products, as arrays."""
    rows, products = found[0]
    if len(found) > 1:
        rows, products = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        best = torch.topk(products, count)
        rows, products = rows.gather(1, best.indices), best.values
    return rows.cpu().numpy(), products.cpu().numpy()
