"""What ``auto`` means: the kind of index for a gallery of a given size, on a given device, in a given memory.

The rule follows what ``cbir bench search`` measured (docs/benchmarks.md).  A scan of all rows by short codes misses
nothing and needs no index, and its time grows with the gallery: at a million images of 640 components it is 17 ms on
one core.  Inverted lists of four-bit codes, whose candidates are scored exactly, found the same ten hits there in 6 ms,
and load ten times as fast, as the codes need not be made at each start.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["IndexChoice", "choose_index"]

#: Bytes of codes and of float16 vectors that a component takes.
_CODE, _HALF = 0.25, 2
#: Most bytes of codes: one core reads so many in about ten milliseconds.
_MOST_CODES = 96 * 2**20
#: Shares of the memory that codes may take, and of a GPU's, the vectors.
_CODE_SHARE, _GPU_SHARE = 0.25, 0.6


@dataclass(frozen=True)
class IndexChoice:
    """A kind of index, by its name in an ensemble file, and one clause that says why."""

    name: str
    why: str


def choose_index(
    images: int, dims: Sequence[int], *, device: str = "cpu", memory: int | None = None
) -> list[IndexChoice]:
    """Choose the kind of index of each member of a gallery: exact for all, or for none.

    Args:
        dims: Components of each member.
        device: ``cuda``: the vectors are searched on a GPU.
        memory: Bytes of memory, of the GPU for ``cuda``; None: as this machine has.
    """
    width = sum(dims)
    memory = _memory(device) if memory is None else memory
    vectors, codes = _HALF * width * images, int(_CODE * width * images)
    if device == "cuda" and vectors <= _GPU_SHARE * memory:
        return [IndexChoice("exact", f"{_size(vectors)} of vectors fit the GPU's {_size(memory)}")] * len(dims)
    if codes <= min(_MOST_CODES, _CODE_SHARE * memory):
        return [IndexChoice("exact", f"{_size(codes)} of codes are scanned in memory, and nothing is missed")] * len(
            dims
        )
    # A power of two near the root: then a query reads as many centres as vectors of the lists that it looks into.
    lists = 2 ** max(0, round(math.log2(max(1, images)) / 2))
    why = (
        f"{_size(codes)} of codes would be read by every query; inverted lists of four-bit codes, with exact scores "
        "for what they propose, take less time"
    )
    return [IndexChoice(f"faiss:IVF{lists},PQ{dim if dim % 2 else dim // 2}x4fs", why) for dim in dims]


def _memory(device: str) -> int:
    if device == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
