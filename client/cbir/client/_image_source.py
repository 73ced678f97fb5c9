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

__all__ = ["PILLOW_ERRORS", "from_array", "image_bytes", "is_array", "is_pil_image", "opaque", "orientation_of",
           "read_file", "upright"]  # fmt: skip

#: PIL images with more pixels than this are sent as JPEG: as PNG, a photo of that size takes tens of megabytes.
_LOSSLESS_PIXELS = 1_000_000
#: Longest side in pixels that JPEG allows.
_JPEG_SIDE = 65_500

#: What Pillow raises on damaged files and metadata.
PILLOW_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError,
    OverflowError, RuntimeError, struct.error,
)  # fmt: skip


def is_pil_image(value: object) -> TypeIs[PIL.Image.Image]:
    """Whether the value is a PIL image. Does not load Pillow: if there is such an image, Pillow is loaded already."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def is_array(value: object) -> bool:
    """Whether the value is a NumPy array, or another one that shows its memory likewise. Loads nothing."""
    return hasattr(value, "__array_interface__") and not is_pil_image(value)


def from_array(array: Any) -> PIL.Image.Image:
    """Return the image that an array holds.

    Args:
        array: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA; uint8, or bool for black and white.

    Raises:
        InvalidQuery: It has another shape or type.
    """
    from PIL import Image

    shape, kind = tuple(array.shape), str(array.dtype)
    if len(shape) == 3 and shape[2] == 1:
        array, shape = array[:, :, 0], shape[:2]
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))) or 0 in shape:
        raise InvalidQuery(
            f"an array of shape {shape} is no image: give (height, width), or (height, width, 3) of RGB",
            reason="IMAGE_FORMAT",
        )
    if kind == "bool":
        array, kind = array.astype("uint8") * 255, "uint8"
    if kind != "uint8":
        raise InvalidQuery(
            f"an array of {kind} does not say which of its values are black and white: scale it to 0..255 and give "
            "array.astype('uint8')",
            reason="IMAGE_FORMAT",
        )
    # The shape says which of the modes it is.
    return Image.fromarray(array)


def read_file(file: Any, max_bytes: int) -> bytes:
    """Return what is left to read of an open file, up to one byte more than allowed.

    Raises:
        InvalidQuery: It cannot be read, or holds text.
    """
    try:
        data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise InvalidQuery(f"the file cannot be read ({error}): open it again", reason="FILE_UNREADABLE") from error
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InvalidQuery("the file was opened for text: open it with mode 'rb'", reason="FILE_UNREADABLE")
    return bytes(data)


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
    except PILLOW_ERRORS:
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
        standing = upright(image)
        if max_side is not None and max(standing.size) > max_side:
            standing.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=3.0)
        pixels = standing.width * standing.height
        deep = standing.mode.startswith("I")
        if pixels > _LOSSLESS_PIXELS and max(standing.size) <= _JPEG_SIDE and not deep:
            return _encode_photo(standing)
        if standing.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
            standing = standing.convert("I").convert("I;16") if deep else standing.convert("RGB")
        standing.save(buffer, "PNG", compress_level=1, exif=b"")
    except PILLOW_ERRORS as error:
        raise InvalidQuery(
            f"the image of mode {image.mode!r} and size {image.size} cannot be written ({error})",
            reason="IMAGE_CORRUPT",
        ) from error
    return buffer.getvalue()


def _encode_photo(image: PIL.Image.Image) -> bytes:
    """Write an upright image as a JPEG of high quality, its transparency on white."""
    buffer = io.BytesIO()
    profile = image.info.get("icc_profile")
    opaque(image).save(buffer, "JPEG", quality=95, subsampling=0, icc_profile=profile)
    return buffer.getvalue()


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return a copy that stands upright and says no more that it does not."""
    from PIL import Image

    image.load()
    orientation = orientation_of(image)
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }  # fmt: skip
    turned = image.transpose(turns[orientation]) if orientation in turns else image.copy()
    for name in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"):
        turned.info.pop(name, None)
    return turned


def orientation_of(image: PIL.Image.Image) -> object:
    """Return the EXIF orientation alone; what else is broken there does not matter, as on the server."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return image.getexif().get(0x0112)
        except PILLOW_ERRORS:
            return None


def opaque(image: PIL.Image.Image) -> PIL.Image.Image:
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
