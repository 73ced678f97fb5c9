"""The best of a product with all rows, which may be made in blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["best_of", "best_rows"]


def best_rows(
    products: torch.Tensor, count: int, allowed: NDArray[np.bool_] | None, start: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best of a block of rows, best first.

    Args:
        products: (B, K) of the rows from ``start`` on; written over where not all rows are allowed.
        allowed: (N,) rows that count, or None for all.

    Returns:
        (B, count) rows and products, or all K where there are fewer; -inf for rows that do not count.
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
    """The best of all blocks' best, best first, on the host: (B, count) rows and products."""
    rows, products = found[0]
    if len(found) > 1:
        rows, products = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        best = torch.topk(products, count)
        rows, products = rows.gather(1, best.indices), best.values
    return rows.cpu().numpy(), products.cpu().numpy()
