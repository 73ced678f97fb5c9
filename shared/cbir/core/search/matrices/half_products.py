"""Products with half-precision rows, converted while they are read, so that memory is read once and never written.

A float16 matrix that is converted block by block is written to memory and read again as float32, which takes several
times as long as the product itself.  Here one query is multiplied as the rows are read, and a batch by tiles that stay
in the cache.  Processors without instructions for half precision do as well: a bit pattern is shifted into the place
of a float32's, which is then wrong by a power of two for normal and subnormal numbers alike, so the query makes up
for it.  Infinities do not occur in unit vectors.

N rows, D components, B queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from cbir.core.machine import jit

__all__ = ["add_product", "products"]

Floats = NDArray[np.float32]

#: What a float16's bits, shifted into a float32, are too small by: the difference of the exponents' biases.
_SCALE = np.float32(2.0**112)
#: Bytes of the tile that holds converted rows.
_TILE_BYTES = 2**22
#: Rows below which further threads cost more than they bring.
_ROWS_A_THREAD = 8192


def add_product(rows: NDArray[np.float16], query: Floats, scores: Floats) -> None:
    """Add to each of (N,) scores the inner product of its (D,) row with a (D,) query.  On all of torch's threads."""
    bits, scaled = rows.view(np.uint16), query * _SCALE
    threads = max(1, min(torch.get_num_threads(), len(rows) // _ROWS_A_THREAD))
    if threads == 1:
        _add_product(bits, scaled, scores)
        return
    stops = np.linspace(0, len(rows), threads + 1).astype(int).tolist()
    parts = [_pool().submit(_add_product, bits[a:b], scaled, scores[a:b]) for a, b in pairwise(stops)]
    for part in parts:
        part.result()


def products(parts: Sequence[torch.Tensor], queries: torch.Tensor) -> torch.Tensor:
    """(B, N) products of rows, given as (N, d) float16 parts that lie side by side, with (B, D) float32 queries."""
    count, width = len(parts[0]), queries.shape[1]
    tall = min(count, max(64, _TILE_BYTES // (4 * width)))
    tile, columns = torch.empty((tall, width)), queries.T.contiguous()
    # Row by row, as the tile is: the other way round takes half as long again.
    result = torch.empty((count, len(queries)))
    for start in range(0, count, tall):
        stop, low = min(start + tall, count), 0
        for part in parts:
            tile[: stop - start, low : low + part.shape[1]].copy_(part[start:stop])
            low += part.shape[1]
        torch.mm(tile[: stop - start], columns, out=result[start:stop])
    return result.T.contiguous()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="cbir-product")


@jit
def _add_product(bits: NDArray[np.uint16], query: Floats, scores: Floats) -> None:
    """Add the products of (N, D) rows, given as bit patterns, with a query that is multiplied by 2 ** 112."""
    width = bits.shape[1]
    patterns = np.empty(width, np.int32)
    row = patterns.view(np.float32)
    for i in range(bits.shape[0]):
        for d in range(width):
            pattern = np.int32(bits[i, d])
            patterns[d] = ((pattern & 0x7FFF) << 13) | ((pattern & 0x8000) << 16)
        total = np.float32(0)
        for d in range(width):
            total += row[d] * query[d]
        scores[i] += total
