"""One indexed image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cbir.core.images import Box

__all__ = ["GalleryImage"]


@dataclass(frozen=True)
class GalleryImage:
    """One indexed image.

    Attributes:
        id: Unique in the gallery.
        uri: Where its file is; see :mod:`cbir.core.files.uri`.
        label: Its class, or None.
        width: Width of the upright image in pixels.
        height: Height of the upright image in pixels.
        sha256: Hexadecimal digest of the file's bytes.
        phash: 64-bit perceptual hash.
        crop: The part that was embedded, in pixels of the upright image.
        stamp: What the source tells about the file without reading it, such as size and time; it shows changes.
        metadata: Further columns of the source, by name.
    """

    id: str
    uri: str
    label: str | None
    width: int
    height: int
    sha256: str
    phash: int
    crop: Box
    stamp: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
