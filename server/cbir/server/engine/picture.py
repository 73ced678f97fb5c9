"""Images of the gallery for display: the original file or a thumbnail of it."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass

from PIL import Image

from cbir.core.artifacts import Gallery
from cbir.core.errors import CbirError, ImageError, QueryError
from cbir.core.images import DecodeLimits, Decoder, InProcessDecoder
from cbir.server.limits import Limits

__all__ = ["Picture", "PictureError", "media_type", "read_picture"]

_QUALITY = 85

# The first bytes of the files of each format.
_MEDIA_TYPES = (
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"BM"), "image/bmp"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "image/tiff"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "image/avif"),
    (re.compile(rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), "image/heic"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), "image/jxl"),
)


class PictureError(CbirError):
    """The file of an indexed image is gone or has changed since it was indexed, or no thumbnail can be made of it."""


@dataclass(frozen=True)
class Picture:
    """The bytes of an image file and their media type, such as ``image/jpeg``."""

    data: bytes
    media_type: str


def media_type(data: bytes) -> str:
    """The media type of an image file, by its first bytes."""
    return next((name for start, name in _MEDIA_TYPES if start.match(data)), "application/octet-stream")


def read_picture(
    gallery: Gallery, image_id: str, thumbnail: int | None, limits: Limits, decoder: Decoder | None = None
) -> Picture:
    """Read the file of an indexed image, and make a JPEG thumbnail of it if asked to.  Blocks.

    Args:
        thumbnail: Length of the longer side in pixels (smaller images keep their size); None for the original file.
        decoder: Decodes the image; None to decode on the calling thread.

    Raises:
        UnknownImageError: The gallery holds no such image.
        QueryError: ``BAD_THUMBNAIL``.
        PictureError: ``IMAGE_GONE``, ``IMAGE_CHANGED`` or ``NO_THUMBNAIL``.
    """
    if thumbnail is not None and not 1 <= thumbnail <= limits.max_thumbnail:
        raise QueryError(
            f"thumbnail is {thumbnail}; it must be from 1 to {limits.max_thumbnail} pixels", reason="BAD_THUMBNAIL"
        )
    row = gallery.row(image_id)
    try:
        data = gallery.read_bytes(row)
    except ImageError as error:
        raise PictureError(
            f"the file of image {image_id!r} cannot be read any more: put it back, or index again",
            reason="IMAGE_GONE",
            image_id=image_id,
        ) from error
    # Only the indexed content is served, never another file that now lies at its path.
    if hashlib.sha256(data).hexdigest() != gallery.sha256(row):
        raise PictureError(
            f"the file of image {image_id!r} has changed since it was indexed: index again",
            reason="IMAGE_CHANGED",
            image_id=image_id,
        )
    if thumbnail is None:
        return Picture(data, media_type(data))
    try:
        bounds = DecodeLimits(len(data), limits.max_pixels, draft_side=thumbnail)
        decoded = (decoder or InProcessDecoder()).decode(data, bounds)
    except ImageError as error:
        raise PictureError(
            f"no thumbnail can be made of image {image_id!r} ({error.reason}): ask for the original",
            reason="NO_THUMBNAIL",
            image_id=image_id,
        ) from error
    small = Image.fromarray(decoded.pixels)
    small.thumbnail((thumbnail, thumbnail), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=_QUALITY)
    return Picture(out.getvalue(), "image/jpeg")
