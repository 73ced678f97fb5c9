"""Labels that mean the same: accents may be spelt in two ways (NFC and NFD)."""

from __future__ import annotations

import unicodedata

__all__ = ["same_label"]


def same_label(one: str | None, other: str | None) -> bool:
    """Tell whether two labels are the same class."""
    if one is None or other is None:
        return one is other
    return unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
