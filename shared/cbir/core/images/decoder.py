"""Where bytes become pixels: on the thread that asks, or wherever else a decoder sends them."""

from __future__ import annotations

from typing import Protocol

from cbir.core.images.decode import DecodedImage, DecodeLimits, decode_image

__all__ = ["Decoder", "InProcessDecoder"]


class Decoder(Protocol):
    """Decodes the bytes of image files.  Safe for concurrent calls; a call blocks until its image is done."""

    def decode(self, data: bytes, limits: DecodeLimits) -> DecodedImage:
        """The upright RGB pixels of one file.

        Raises:
            ImageError: The bytes are no usable image, or break a limit (see :func:`cbir.core.images.decode_image`).
        """
        ...


class InProcessDecoder:
    """Decodes on the thread that calls."""

    def decode(self, data: bytes, limits: DecodeLimits) -> DecodedImage:
        """See :class:`Decoder`."""
        return decode_image(data, limits)
