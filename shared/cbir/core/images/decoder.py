"""The protocol of where images are decoded, and its simplest form: on the calling thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cbir.core.images.decode import DecodedImage, DecodeLimits, decode_image

__all__ = ["Decoder", "InProcessDecoder"]


class Decoder(Protocol):
    """Decodes image files.  Safe for concurrent calls; a call returns when its image is decoded."""

    def decode(self, data: bytes, limits: DecodeLimits, go_on: Callable[[], bool] | None = None) -> DecodedImage:
        """The upright RGB pixels of one file.

        Args:
            go_on: Whether anybody still waits; a decoder that can stop in the middle asks it now and then.

        Raises:
            ImageError: The bytes are no usable image, or break a limit (see :func:`cbir.core.images.decode_image`).
        """
        ...


class InProcessDecoder:
    """Decodes on the calling thread.  For trusted images: nothing stops one that takes long."""

    def decode(self, data: bytes, limits: DecodeLimits, go_on: Callable[[], bool] | None = None) -> DecodedImage:
        """See :class:`Decoder`."""
        return decode_image(data, limits)
