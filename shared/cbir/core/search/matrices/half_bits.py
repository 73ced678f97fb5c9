"""The bits of a float16 as a float32, for compiled loops: by the processor's instruction where it has one.

Numba has no float16 on CPUs, but its compiler does.  Where the processor lacks the instruction, a float16's bits are
shifted into the place of a float32's, which is then too small by a power of two for normal and subnormal numbers
alike.  Infinities do not occur in unit vectors.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.core import config
from numba.extending import intrinsic

__all__ = ["has_instruction", "shifted", "widened"]

#: What a float16's bits, shifted into a float32, are too small by: the difference of the exponents' biases.
_SCALE = 2.0**112


def has_instruction() -> bool:
    """Whether loops are compiled for a processor that converts float16 itself; all of ARM's 64-bit ones do.

    Numba's own settings may forbid instructions that the processor has.
    """
    settings: Any = config
    if settings.CPU_NAME or settings.CPU_FEATURES:
        return "+f16c" in (settings.CPU_FEATURES or "")
    return platform.machine() in ("aarch64", "arm64") or bool(binding.get_host_cpu_features().get("f16c"))


def _convert(builder: Any, bits: Any) -> Any:
    return builder.fpext(builder.bitcast(bits, ir.HalfType()), ir.FloatType())


def _shift(builder: Any, bits: Any) -> Any:
    wide, word = builder.zext(bits, ir.IntType(32)), ir.IntType(32)
    value = builder.shl(builder.and_(wide, word(0x7FFF)), word(13))
    sign = builder.shl(builder.and_(wide, word(0x8000)), word(16))
    return builder.fmul(builder.bitcast(builder.or_(value, sign), ir.FloatType()), ir.FloatType()(_SCALE))


@intrinsic
def shifted(typing: Any, bits: Any) -> Any:
    """A float32 from the uint16 bits of a float16, on any processor."""
    return types.float32(types.uint16), lambda context, builder, signature, given: _shift(builder, given[0])


@intrinsic
def _converted(typing: Any, bits: Any) -> Any:
    return types.float32(types.uint16), lambda context, builder, signature, given: _convert(builder, given[0])


#: A float32 from the uint16 bits of a float16, in the way that suits this processor.
widened: Any = _converted if has_instruction() else shifted
