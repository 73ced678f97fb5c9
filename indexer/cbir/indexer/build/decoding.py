"""How the images of an index were read: kept with each version, as it decides what was refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cbir.core.images import DecodeLimits, readable_formats

__all__ = ["decoding_facts", "index_limits"]

#: Raised when images are read that were refused before, or the other way round: refused ones are then tried again.
_DECODING = 2


def decoding_facts(limits: DecodeLimits) -> dict[str, Any]:
    """What decides whether an image can be read, as plain data for the manifest."""
    return {
        "version": _DECODING,
        "formats": list(readable_formats()),
        "max_bytes": limits.max_bytes,
        "max_pixels": limits.max_pixels,
    }


def index_limits(settings: Mapping[str, Any]) -> DecodeLimits:
    """The limits that an index was made with, from the settings in its manifest: queries may be as large."""
    told = settings.get("decoding", {})
    known = {name: told[name] for name in ("max_bytes", "max_pixels") if isinstance(told.get(name), int)}
    return replace(DecodeLimits(), **known)
