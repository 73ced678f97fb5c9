"""The protocol of where images are decoded, and its simplest form: on the calling thread."""

from __future__ import annotations

from typing import Protocol

from cbir.core.images.decode import DecodedImage, DecodeLimits, decode_image

__all__ = ["Decoder", "InProcessDecoder"]


class Decoder(Protocol):
    """Decodes image files.  Safe for concurrent calls; a call returns when its image is decoded."""

    def decode(self, data: bytes, limits: DecodeLimits) -> DecodedImage:
        """The upright RGB pixels of one file.

        Raises:
            ImageError: The bytes are no usable image, or break a limit (see :func:`cbir.core.images.decode_image`).
        """
        ...


class InProcessDecoder:
    """Decodes on the calling thread."""

    def decode(self, data: bytes, limits: DecodeLimits) -> DecodedImage:
        """See :class:`Decoder`."""
        return decode_image(data, limits)
