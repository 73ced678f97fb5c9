"""Products with half-precision rows, converted while they are read, so that memory is read once and never written.

A float16 matrix that is converted block by block is written to memory and read again as float32, which takes several
times as long as the product itself.  Here one query is multiplied as the rows are read, and a batch by tiles that stay
in the cache.

N rows, D components, B queries, M members, C rows a query.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cbir.core.machine import jit
from cbir.core.search.matrices.half_bits import widened

__all__ = ["add_product", "inner_products_of", "products"]

Floats = NDArray[np.float32]

#: Bytes of the tile that holds converted rows.
_TILE_BYTES = 2**21


def add_product(rows: NDArray[np.float16], query: Floats, scores: Floats) -> None:
    """Add to each of (N,) scores the inner product of its (D,) row with a (D,) query."""
    _add_product(_bits(rows), query, scores)


def products(parts: Sequence[torch.Tensor], queries: torch.Tensor) -> torch.Tensor:
    """(B, N) products of rows, given as (N, d) float16 parts that lie side by side, with (B, D) float32 queries."""
    count, width = len(parts[0]), queries.shape[1]
    tall = min(count, max(64, _TILE_BYTES // (4 * width)))
    tile, result = torch.empty((tall, width)), torch.empty((len(queries), count))
    for start in range(0, count, tall):
        stop, low = min(start + tall, count), 0
        for part in parts:
            tile[: stop - start, low : low + part.shape[1]].copy_(part[start:stop])
            low += part.shape[1]
        torch.mm(queries, tile[: stop - start].T, out=result[:, start:stop])
    return result


def inner_products_of(rows: NDArray[np.float16], picked: NDArray[np.int64], queries: Floats, result: Floats) -> None:
    """Write the inner products of (B, D) queries with their own (B, C) rows of (N, D) into (B, C); -1 counts as 0."""
    _inner_products_of(_bits(rows), picked, queries, result)


def _bits(rows: NDArray[np.float16]) -> NDArray[np.uint16]:
    """Read-only, as mapped files are: Numba compiles anew for what may be written."""
    bits = rows.view(np.uint16)
    bits.flags.writeable = False
    return bits


@jit
def _product(bits: NDArray[np.uint16], query: Floats) -> np.float32:
    total = np.float32(0)
    for d in range(len(query)):
        total += widened(bits[d]) * query[d]
    return total


@jit
def _add_product(bits: NDArray[np.uint16], query: Floats, scores: Floats) -> None:
    for i in range(bits.shape[0]):
        scores[i] += _product(bits[i], query)


@jit
def _inner_products_of(bits: NDArray[np.uint16], picked: NDArray[np.int64], queries: Floats, result: Floats) -> None:
    for b in range(picked.shape[0]):
        for c in range(picked.shape[1]):
            result[b, c] = _product(bits[max(picked[b, c], 0)], queries[b])
