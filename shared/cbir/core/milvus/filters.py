"""Conditions as expressions of Milvus.  They hold numbers only, so no label or value can end one early.

Labels are compared by their number in the gallery.  A pair of a metadata column and its value becomes a 63-bit digest,
its facet; two pairs with the same facet only let more rows pass, and all rows that come back are checked again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from cbir.core.vote import Conditions

__all__ = ["expression", "facets", "rows_in"]


def facets(metadata: Mapping[str, str]) -> list[int]:
    """The facets of an image, sorted."""
    return sorted({_facet(column, value) for column, value in metadata.items()})


def expression(conditions: Conditions | None) -> str:
    """What Milvus is to select rows by; empty for all rows."""
    if conditions is None:
        return ""
    parts = []
    if conditions.labels is not None:
        parts.append(f"label_code in {_numbers(conditions.labels)}")
    if conditions.exclude_labels:
        parts.append(f"label_code not in {_numbers(conditions.exclude_labels)}")
    for column, values in conditions.metadata.items():
        parts.append(f"array_contains_any(facets, {_numbers(_facet(column, value) for value in values)})")
    return " and ".join(parts)


def rows_in(rows: Iterable[int]) -> str:
    """The expression that selects rows by number."""
    return f"row in {_numbers(rows)}"


def _numbers(values: Iterable[int]) -> str:
    return f"[{', '.join(str(int(value)) for value in values)}]"


def _facet(column: str, value: str) -> int:
    # The length keeps apart pairs whose texts are the same when they are joined.
    text = f"{len(column)}:{column}{value}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1
