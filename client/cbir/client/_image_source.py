"""The bytes that are sent for an image, in whatever form it was given. Pillow is loaded only when it is needed."""

from __future__ import annotations

import io
import os
import struct
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbir.client._errors import InvalidQuery, TooLarge

if TYPE_CHECKING:
    import PIL.Image
    from typing_extensions import TypeIs

__all__ = ["image_bytes", "is_pil_image"]

#: PIL images with more pixels than this are sent as JPEG: as PNG, a photo of that size takes tens of megabytes.
_LOSSLESS_PIXELS = 1_000_000
#: Longest side in pixels that JPEG allows.
_JPEG_SIDE = 65_500

#: What Pillow raises on damaged files and metadata.
_PILLOW_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError,
    OverflowError, RuntimeError, struct.error,
)  # fmt: skip


def is_pil_image(value: object) -> TypeIs[PIL.Image.Image]:
    """Whether the value is a PIL image. Does not load Pillow: if there is such an image, Pillow is loaded already."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def image_bytes(
    source: bytes | bytearray | memoryview | str | os.PathLike[str] | PIL.Image.Image,
    *,
    max_side: int | None = None,
    max_bytes: int = 64 * 2**20,
) -> bytes:
    """Return the bytes of an image file for an image.

    Bytes and files are not changed. A PIL image is turned upright and encoded as PNG, or as JPEG (quality 95, no chroma
    subsampling, transparency on white) if it has more than a million pixels.

    Args:
        source: The image.
        max_side: Shrink the image if its longer side has more pixels than this.
        max_bytes: Size in bytes of the largest image that may be sent.

    Raises:
        InvalidQuery: The file cannot be read, or the image cannot be shrunk or encoded.
        TooLarge: The image has more than ``max_bytes``.
    """
    if max_side is not None and max_side < 1:
        raise InvalidQuery(f"max_side is {max_side}: give a positive number of pixels", reason="BAD_MAX_SIDE")
    if is_pil_image(source):
        data = _encode(source, max_side)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        if max_side is not None:
            data = _shrink(io.BytesIO(data), max_side) or data
    else:
        data = _read(Path(source), max_side, max_bytes)
    if len(data) > max_bytes:
        raise TooLarge(
            f"the image has {len(data):,} bytes, more than the {max_bytes:,} that may be sent: shrink it (max_side=)",
            reason="IMAGE_TOO_LARGE",
        )
    return data


def _read(path: Path, max_side: int | None, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            shrunk = _shrink(file, max_side) if max_side is not None else None
            if shrunk is not None:
                return shrunk
            file.seek(0)
            # One byte more than allowed, to notice files that are too large without reading them (or endless ones)
            # whole.
            return file.read(max_bytes + 1)
    except OSError as error:
        raise InvalidQuery(
            f"cannot read {str(path)!r} ({error.strerror or error}): give the path of an image file",
            reason="FILE_UNREADABLE",
        ) from error


def _shrink(file: Any, max_side: int) -> bytes | None:
    """Return a smaller image file; None if the image is small enough, or only the server can tell what is wrong.

    Metadata that this Pillow stumbles over is nothing to the server, which reads none but the orientation.
    """
    import PIL.Image

    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata, which is of no use to anybody here.
            warnings.simplefilter("ignore")
            with PIL.Image.open(file) as image:
                if max(image.size) <= max_side:
                    return None
                # Lets the JPEG decoder decode at a reduced size, of at least max_side.
                image.draft(None, (max_side, max_side))
                return _encode(image, max_side)
    except PIL.Image.DecompressionBombError as error:
        raise InvalidQuery(f"the image cannot be shrunk ({error}): send it as it is", reason="IMAGE_CORRUPT") from error
    except InvalidQuery as error:
        if "truncated" in str(error) or error.reason == "IMAGE_FORMAT":
            raise
        return None
    except _PILLOW_ERRORS:
        return None


def _encode(image: PIL.Image.Image, max_side: int | None) -> bytes:
    from PIL import Image

    if image.mode == "F":
        raise InvalidQuery(
            "an image of mode 'F' does not say which of its values are black and white: convert it to 'L' or 'RGB'",
            reason="IMAGE_FORMAT",
        )
    buffer = io.BytesIO()
    try:
        upright = _upright(image)
        if max_side is not None and max(upright.size) > max_side:
            upright.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=3.0)
        pixels = upright.width * upright.height
        deep = upright.mode.startswith("I")
        if pixels > _LOSSLESS_PIXELS and max(upright.size) <= _JPEG_SIDE and not deep:
            profile = upright.info.get("icc_profile")
            _opaque(upright).save(buffer, "JPEG", quality=95, subsampling=0, icc_profile=profile)
        else:
            if upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
                upright = upright.convert("I").convert("I;16") if deep else upright.convert("RGB")
            upright.save(buffer, "PNG", compress_level=1, exif=b"")
    except _PILLOW_ERRORS as error:
        raise InvalidQuery(
            f"the image of mode {image.mode!r} and size {image.size} cannot be written ({error})",
            reason="IMAGE_CORRUPT",
        ) from error
    return buffer.getvalue()


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return a copy that stands upright and says no more that it does not."""
    from PIL import Image

    image.load()
    orientation = _orientation(image)
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }  # fmt: skip
    upright = image.transpose(turns[orientation]) if orientation in turns else image.copy()
    for name in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"):
        upright.info.pop(name, None)
    return upright


def _orientation(image: PIL.Image.Image) -> object:
    """Return the EXIF orientation alone; what else is broken there does not matter, as on the server."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return image.getexif().get(0x0112)
        except _PILLOW_ERRORS:
            return None


def _opaque(image: PIL.Image.Image) -> PIL.Image.Image:
    """Put transparent images on white, as the server does."""
    from PIL import Image

    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        opaque = Image.new("RGB", layer.size, "white")
        opaque.paste(layer, mask=layer.getchannel("A"))
        return opaque
    return image.convert("RGB")
