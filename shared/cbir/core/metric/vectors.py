"""The protocol of vectors that are too many for the memory: rows are read when they are asked for."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Vectors"]


class Vectors(Protocol):
    """(N, D) float32 vectors, as an array or in files."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> NDArray[np.float32]:
        """The rows of a slice or of an array of row numbers."""
