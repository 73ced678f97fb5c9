"""Labels that mean the same: accents may be spelt in two ways (NFC and NFD)."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

__all__ = ["is_expected", "same_label"]


def same_label(one: str | None, other: str | None) -> bool:
    """Tell whether two labels are the same class."""
    if one is None or other is None:
        return one is other
    return unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)


def is_expected(label: str | None, expected: Iterable[str]) -> bool:
    """Tell whether a label is one of those that are expected."""
    return any(same_label(label, one) for one in expected)
