"""Conditions on the labels and the metadata of hits, as a store of vectors can evaluate them itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Conditions"]


@dataclass(frozen=True)
class Conditions:
    """What an image must meet to be a hit; all of it.

    Attributes:
        labels: Numbers of the labels of which it must have one; None: any, or none at all.
        exclude_labels: Numbers of the labels that it must not have.
        metadata: By column: the values of which it must have one.
    """

    labels: tuple[int, ...] | None = None
    exclude_labels: tuple[int, ...] = ()
    metadata: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
