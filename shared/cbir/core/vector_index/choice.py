"""What ``auto`` means: the kind of index for a gallery of a given size, on a given device, in a given memory.

``cbir bench search`` measures the kinds side by side; docs/benchmarks.md has a table for a million images.  The scan of
all rows by short codes is exact and the fastest at that size, so it stays the choice as long as the codes are few.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["IndexChoice", "choose_index"]

#: Bytes of codes and of float16 vectors that a component takes.
_CODE, _HALF = 0.25, 2
#: Most bytes of codes: a query reads all of them, in tens of milliseconds at the bandwidth of today's memories.
_MOST_CODES = 512 * 2**20
#: Shares of the memory that codes, and vectors in an index, may take; of a GPU's, what the vectors may take.
_CODE_SHARE, _INDEX_SHARE, _GPU_SHARE = 0.25, 0.5, 0.6


@dataclass(frozen=True)
class IndexChoice:
    """A kind of index, by its name in an ensemble file, and one clause that says why."""

    name: str
    why: str


def choose_index(
    images: int, width: int, *, device: str = "cpu", memory: int | None = None, members: int = 1
) -> IndexChoice:
    """Choose the kind of index for all members of a gallery.

    Args:
        width: Components of a row, of all members together.
        device: ``cuda``: the vectors are searched on a GPU.
        memory: Bytes of memory, of the GPU for ``cuda``; None: as this machine has.
        members: How many indexes share the memory.
    """
    memory = _memory(device) if memory is None else memory
    vectors, codes = _HALF * width * images, int(_CODE * width * images)
    if device == "cuda" and vectors <= _GPU_SHARE * memory:
        return IndexChoice("exact", f"{_size(vectors)} of vectors fit the GPU's {_size(memory)}")
    if codes <= min(_MOST_CODES, _CODE_SHARE * memory):
        return IndexChoice("exact", f"{_size(codes)} of codes are scanned in memory, and nothing is missed")
    lists = max(1, int(4 * images**0.5))
    reason = f"{_size(codes)} of codes are too many to be scanned by every query"
    if vectors <= _INDEX_SHARE * memory:
        return IndexChoice(f"faiss:IVF{lists},SQfp16", f"{reason}; {_size(vectors)} of vectors fit the memory")
    if vectors // 2 <= _INDEX_SHARE * memory:
        return IndexChoice(f"faiss:IVF{lists},SQ8", f"{reason}, and {_size(vectors)} of vectors for the memory")
    dim = width // max(1, members)
    parts = next((parts for parts in (dim // 2, dim // 4, 1) if parts and dim % parts == 0), 1)
    return IndexChoice(
        f"faiss:IVF{lists},PQ{parts}x4fs", f"{reason}, and eight bits a component for {_size(memory)} of memory"
    )


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
