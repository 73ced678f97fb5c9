"""Tolerances, in units of the precision that something was computed in.

A unit is the largest relative error of one rounding: 2^-24 in float32, 2^-11 in float16, 2^-8 in bfloat16.  Which of
them a network runs in is the processor's to say, so a test asks the embedder and not a constant.
"""

from __future__ import annotations

__all__ = ["UNITS", "f16", "f32", "least_cosine", "of_components"]

UNITS = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}

#: Networks round the factors of their products, a few units of error in all; measured: 0.6 in the components and 1.4 in
#: the length of the difference (test_resnet, test_vit, resnet18 in bf16).  Sums are of float32 everywhere.
_FACTORS, _SUMS = 4, 32


def f32(units: float) -> float:
    """So many units of float32: 1 for a rounding, some dozens for sums, whose order differs between processors."""
    return units * UNITS["f32"]


def f16(units: float) -> float:
    """So many units of float16, in which indexes store vectors."""
    return units * UNITS["f16"]


def of_components(precision: str) -> float:
    """How far the components of unit embeddings may be from those of eager float32."""
    return _FACTORS * UNITS[precision] + f32(_SUMS)


def least_cosine(precision: str) -> float:
    """How near unit embeddings must be to those of eager float32: a difference of length d costs d^2 / 2."""
    return 1 - of_components(precision) ** 2 / 2 - f32(_SUMS)
