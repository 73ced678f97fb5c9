"""A block of the embedding cache: a safetensors file of digests and values, mapped and never read whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CacheBlock"]

#: Length of a SHA-256 digest.
_DIGEST = 32
_LARGEST_HEADER = 2**16
_TYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I64": np.int64, "I32": np.int32, "U8": np.uint8}


@dataclass(frozen=True)
class CacheBlock:
    """Where the arrays of a block are in its file.

    Attributes:
        path: The file.
        rows: Number of digests.
        width: Numbers in a row of values.
        dtype: Of the values.
        keys_at: Where the digests begin, in bytes.
        values_at: Where the values begin.
    """

    path: Path
    rows: int
    width: int
    dtype: np.dtype[Any]
    keys_at: int
    values_at: int

    @classmethod
    def open(cls, path: Path) -> CacheBlock:
        """Read the header.

        Raises:
            ValueError: The file is cut off, or no such block.
            OSError: It cannot be read.
        """
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(_LARGEST_HEADER, size - 8):
                raise ValueError(f"{path} has no header")
            header = json.loads(file.read(length))
        try:
            keys, values = header["keys"], header["values"]
            (rows, digest), (count, width) = keys["shape"], values["shape"]
            dtype = np.dtype(_TYPES[values["dtype"]])
            expected = {"keys": rows * _DIGEST, "values": rows * width * dtype.itemsize}
            places = {name: header[name]["data_offsets"] for name in expected}
            sound = keys["dtype"] == "U8" and digest == _DIGEST and rows == count and rows > 0 and width > 0
            fits = all(0 <= a <= b <= size - 8 - length and b - a == expected[name] for name, (a, b) in places.items())
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no block") from error
        if not (sound and fits):
            raise ValueError(f"{path} is cut off, or no block")
        start = 8 + length
        return cls(path, rows, width, dtype, start + places["keys"][0], start + places["values"][0])

    def keys(self) -> NDArray[np.uint8]:
        """(rows, 32) digests, mapped."""
        return np.memmap(self.path, np.uint8, "r", self.keys_at, (self.rows, _DIGEST))

    def values(self) -> NDArray[Any]:
        """(rows, width) values, mapped."""
        return np.memmap(self.path, self.dtype, "r", self.values_at, (self.rows, self.width))
