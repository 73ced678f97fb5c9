"""What is black and what is white in greys of more than eight bits, which seldom say so themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NO_DATA", "eight_bits"]

#: White of data of so many bits, and of floats from 0 to 1.
_WHITES = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
#: Numbers that programs write where nothing was measured.
NO_DATA = frozenset(
    float(v)
    for v in (
        -9999, -99999, -999, -32768, -32767, 65535, 2**31 - 1, -(2**31), 1e20, -1e20, 1e30, -1e30, 1e36,
        np.finfo(np.float32).max, np.finfo(np.float32).min, 9.96920996838687e36, -3.4e38, 3.4e38,
    )
)  # fmt: skip
#: An extreme value that is this many times further from the others than they are from each other is no brightness.
_APART = 16.0
_FEWEST_GREYS = 16.0
_ROWS = 256


def eight_bits(values: NDArray[Any], no_data: float | None = None) -> NDArray[np.uint8]:
    """Scale greys of any depth to 0..255.

    - NaN, infinities and ``no_data`` say nothing about the range; NaN and ``no_data`` are painted black.
    - A least or largest value that lies far from all others is left out likewise (then black or white): further than
      they span where it is one of the numbers that programs write for "nothing measured", else 16 times as far.
    - Black is 0, or the least value where there are negative ones.
    - White is the smallest of 1, 255, 1023, 4095, 16383 and 65535 that is not exceeded, if a quarter of it is reached:
      8 to 14 bits of data in 16 or 32, and floats of either convention.  Else it is the largest value.
    - What would lie within 16 of the 256 greys is stretched from its least to its largest value.

    Args:
        values: (H, W) of any number type.
        no_data: The value that stands for missing measurements, where the file names one.
    """
    black, white = _range(values, no_data)
    # Measured by the larger of the two, so that neither the largest floats nor the smallest leave their range.
    unit = max(abs(black), abs(white))
    black, white = black / unit, white / unit
    out = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _ROWS):
        stored = values[start : start + _ROWS]
        with np.errstate(over="ignore"):
            part = stored.astype(np.float64) / unit
        part[np.isnan(part) | _is_missing(stored, no_data)] = black
        scaled = np.clip(255.0 * (np.clip(part, black, white) - black) / (white - black), 0, 255)
        out[start : start + _ROWS] = np.rint(scaled)
    return out


def _range(values: NDArray[Any], no_data: float | None) -> tuple[float, float]:
    """Black and white; never equal, and never both 0."""
    kept = values.ravel()
    # No copies of what may be hundreds of megabytes, where one mask will do.
    known = np.isfinite(kept) if kept.dtype.kind == "f" else np.ones(kept.shape, bool)
    if no_data is not None:
        known &= ~_is_missing(kept, no_data)
    if not known.any():
        return 0.0, 1.0
    low, high = _without_outliers(kept, known)
    black = min(0.0, low)
    if black < 0:
        return black, high if high > black else 0.0
    white = next((white for white in _WHITES if high <= white), high)
    if high < white / 4:
        white = high if high > 0 else 1.0
    if 0 < 255.0 * (high - low) / white < _FEWEST_GREYS:
        black, white = low, high
    return black, white


def _without_outliers(values: NDArray[Any], known: NDArray[np.bool_]) -> tuple[float, float]:
    """The least and largest of the values that are known, but for those that are no brightness; changes ``known``."""
    low, high = _ends(values, known)
    if values.dtype.kind != "f" and low >= 0 and high < 65535:
        return low, high
    for _ in range(2):
        for extreme, opposite in ((high, low), (low, high)):
            others = known & (values != extreme)
            if opposite in NO_DATA and (others & (values != opposite)).any():
                others &= values != opposite
            if not others.any():
                return low, high
            least, most = _ends(values, others)
            span, gap = most - least, max(least - extreme, extreme - most)
            usual = extreme in NO_DATA
            # Of two values, the larger is as good a white as any.
            if gap > span * (1.0 if usual else _APART) and (span > 0 or (usual and extreme < least)):
                known &= values != extreme
                low, high = _ends(values, known)
    return low, high


def _ends(values: NDArray[Any], among: NDArray[np.bool_]) -> tuple[float, float]:
    """The least and the largest of some values, of which there is one."""
    some = values[among.argmax()]
    return float(values.min(where=among, initial=some)), float(values.max(where=among, initial=some))


def _is_missing(values: NDArray[Any], no_data: float | None) -> NDArray[np.bool_]:
    """Where the value stands that means "nothing measured", which files spell with fewer digits than they store."""
    if no_data is None or (values.dtype.kind != "f" and not no_data.is_integer()):
        return np.zeros(values.shape, bool)
    with np.errstate(over="ignore"):
        return np.asarray(values == (values.dtype.type(no_data) if values.dtype.kind == "f" else int(no_data)))
