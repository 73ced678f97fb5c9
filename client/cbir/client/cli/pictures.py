"""Images for the contact sheet: decoded, upright and small."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image, ImageOps

from cbir.client import CbirClientError, Client, ImageId, Text
from cbir.client._image_source import image_bytes

__all__ = ["Picture", "fetch_thumbnails", "open_picture", "query_picture"]

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_FETCHERS = 8


@dataclass(frozen=True, slots=True)
class Picture:
    """An upright image, possibly scaled down.

    Attributes:
        image: RGB.
        width: Width of the original in pixels.
        height: Height of the original in pixels.
    """

    image: Image.Image
    width: int
    height: int


def open_picture(data: bytes, side: int) -> Picture | None:
    """Decode an image file and scale it down to ``side`` pixels on its longer side; None if it cannot be decoded."""
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, which does not matter here, and of large images, which it refuses by itself.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
                image.draft("RGB", (side, side))
                upright = ImageOps.exif_transpose(image)
                if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):
                    width, height = height, width
                if upright.has_transparency_data:
                    layer = upright.convert("RGBA")
                    upright = Image.new("RGB", layer.size, "white")
                    upright.paste(layer, mask=layer.getchannel("A"))
                upright = upright.convert("RGB")
                upright.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
            return None
    return Picture(upright, width, height)


def fetch_thumbnails(client: Client, image_ids: Iterable[str], side: int) -> dict[str, Picture]:
    """Fetch and decode thumbnails of gallery images; those that cannot be fetched are left out."""

    def fetch(image_id: str) -> bytes:
        try:
            return client.image(image_id, thumbnail=side)
        except CbirClientError:
            return b""

    ids = list(dict.fromkeys(image_ids))
    with ThreadPoolExecutor(max_workers=_FETCHERS) as pool:
        files = list(pool.map(fetch, ids))
    pictures = {image_id: open_picture(file, side) for image_id, file in zip(ids, files, strict=True)}
    return {image_id: picture for image_id, picture in pictures.items() if picture is not None}


def query_picture(client: Client, query: str | bytes | ImageId | Text, side: int) -> Picture | None:
    """The image of a query, from its file or, for an id, from the gallery; None for text."""
    if isinstance(query, Text):
        return None
    try:
        data = client.image(query.id, thumbnail=side) if isinstance(query, ImageId) else image_bytes(query)
    except CbirClientError:
        return None
    return open_picture(data, side)
