"""Products in half precision with a proven bound on their error, so that rescoring makes their hits exact.

Rows and queries are rounded to bfloat16 or float16, which halves the memory that is read and, where a processor has
instructions for it, takes a fraction of the time of float32.  For unit vectors the Cauchy-Schwarz inequality bounds
what that costs: |x q - x' q'| <= |x - x'| |q| + |x'| |q - q'|, member by member, with the norms as they are, not as
they could be at worst.  To it come the rounding of the sums, which processors add up in float32, and of the results.

N rows, B queries, M members, D components.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray

from cbir.core.search.matrices.blockwise_top_k import best_of, best_rows
from cbir.core.search.matrices.cpu_matrix import CpuMatrix, HalfRows, MappedMatrix

__all__ = ["HALVES", "HalfProduct"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: By name: the type, and the largest relative error of rounding to it.
HALVES: dict[str, tuple[torch.dtype, float]] = {"bf16": (torch.bfloat16, 2.0**-8), "f16": (torch.float16, 2.0**-11)}
#: The least positive normal float16; what is smaller has an absolute error instead of a relative one.
_LEAST_HALF = 2.0**-14
_FLOAT32 = 2.0**-24
#: Rows whose products are kept at a time, and rows that are rounded at a time.
_BLOCK_ROWS, _ROUNDED_ROWS = 2**18, 2**14


class HalfProduct:
    """The rows of a matrix in half precision: a copy in bfloat16; or in float16 as they are kept, without a copy.

    Args:
        name: ``bf16`` or ``f16``.
        rows: How many rows to take, from the first on; None: all.

    Raises:
        ValueError: ``f16`` for a matrix that does not keep its rows so: a copy would bring nothing.
    """

    def __init__(self, matrix: CpuMatrix, name: str, rows: int | None = None) -> None:
        self._dtype, self._unit = HALVES[name]
        self._stops, count = matrix.stops, len(matrix) if rows is None else rows
        #: (M,) the largest norm of what rounding changed in a row, and of a rounded row.
        self._lost, self._norms = np.zeros(len(self._stops) - 1), np.zeros(len(self._stops) - 1)
        copy: torch.Tensor | None = None
        if name == "f16":
            if not isinstance(matrix, MappedMatrix):
                raise ValueError("the rows are not kept in float16")
            self._parts: list[torch.Tensor | HalfRows] = list(matrix.first(count).parts)
        else:
            copy = torch.empty((count, self._stops[-1]), dtype=self._dtype)
            self._parts = [copy]
        for start in range(0, count, _ROUNDED_ROWS):
            block = slice(start, min(start + _ROUNDED_ROWS, count))
            plain = torch.from_numpy(matrix.sample(block))
            rounded = plain
            if copy is not None:
                copy[block] = plain.to(self._dtype)
                rounded = copy[block].float()
            for m, (low, high) in enumerate(itertools.pairwise(self._stops)):
                lost = (rounded[:, low:high] - plain[:, low:high]).norm(dim=1).max()
                self._lost[m] = max(self._lost[m], float(lost))
                self._norms[m] = max(self._norms[m], float(rounded[:, low:high].norm(dim=1).max()))
        # Norms are sums in float32 themselves.
        self._lost *= 1 + _FLOAT32 * self._stops[-1]
        self._norms *= 1 + _FLOAT32 * self._stops[-1]

    def __len__(self) -> int:
        return len(self._parts[0])

    def search(self, queries: Floats, count: int, allowed: NDArray[np.bool_] | None = None) -> tuple[Rows, Floats]:
        """(B, count) rows with the largest estimates for (B, D) queries, best first, and the estimates.

        Args:
            allowed: (N,) rows that may be listed, or None for all; others have -inf.
        """
        asked = torch.from_numpy(np.ascontiguousarray(queries)).to(self._dtype)
        stops = self._stops if len(self._parts) > 1 else (0, self._stops[-1])
        parts = [asked[:, low:high].contiguous() for low, high in itertools.pairwise(stops)]
        found = []
        with torch.inference_mode():
            for start in range(0, len(self), _BLOCK_ROWS):
                scores = torch.zeros((len(queries), min(_BLOCK_ROWS, len(self) - start)))
                for part, query in zip(self._parts, parts, strict=True):
                    block = part[start : start + _BLOCK_ROWS]
                    # The product of a matrix and a vector is several times as fast as that of two matrices.
                    scores += torch.mv(block, query[0])[None] if len(query) == 1 else query @ block.T
                found.append(best_rows(scores, count, allowed, start))
            return best_of(found, count)

    def error(self, queries: Floats) -> Floats:
        """(B,) the most by which an estimate can differ from the float32 score, for (B, D) queries."""
        rounded = torch.from_numpy(np.ascontiguousarray(queries)).to(self._dtype).float().numpy()
        bound = np.zeros(len(queries))
        for m, (low, high) in enumerate(itertools.pairwise(self._stops)):
            asked, near = queries[:, low:high].astype(np.float64), rounded[:, low:high].astype(np.float64)
            reach = self._norms[m] * np.linalg.norm(near, axis=1)
            bound += self._lost[m] * np.linalg.norm(asked, axis=1)
            bound += self._norms[m] * np.linalg.norm(asked - near, axis=1)
            # The result is rounded once, and once more where it is the sum of members; float32 sums have each term
            # rounded as often as there are terms, in the worst order, here and in the score to compare with.
            bound += reach * (self._unit + 2 * _FLOAT32 * (high - low + len(self._norms) + 1))
        if self._dtype is torch.float16:
            bound += len(self._norms) * _LEAST_HALF * self._unit
        return np.asarray(bound, np.float32)
