"""A ``.npy`` file of vectors, written a block at a time: what is written need not be in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["VectorFile"]


class VectorFile:
    """An (N, d) float16 array on its way to the disk; the same bytes as :func:`numpy.save` would write.

    Args:
        width: d.
    """

    def __init__(self, path: Path, width: int) -> None:
        self._file = path.open("wb")
        self._width, self._rows = width, 0
        self._write_header()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        # The number of rows is known only now; the header has room for it.
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        header = {"descr": "<f2", "fortran_order": False, "shape": (self._rows, self._width)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, vectors: NDArray[np.float16]) -> None:
        """Add (n, d) vectors."""
        self._file.write(np.ascontiguousarray(vectors, "<f2").data)
        self._rows += len(vectors)
