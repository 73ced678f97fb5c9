"""The files of the page: read once, each with its media type and a tag that changes when it does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

__all__ = ["Asset", "assets"]

_MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    """A file of the page.

    Attributes:
        tag: For the header ``ETag``.
    """

    data: bytes = field(repr=False)
    media_type: str
    tag: str


def assets() -> Mapping[str, Asset]:
    """All files of the page, by name.  Names are looked up here, never on disk: no request reaches another file."""
    found = {}
    for file in sorted(resources.files(__package__).joinpath("files").iterdir(), key=lambda file: file.name):
        _, _, ending = file.name.rpartition(".")
        if ending in _MEDIA_TYPES:
            data = file.read_bytes()
            found[file.name] = Asset(data, _MEDIA_TYPES[ending], f'"{hashlib.sha256(data).hexdigest()[:24]}"')
    return found
