"""Opening an image file: what is no picture is taken out, and what the header promises is held against the limits."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from PIL import Image, ImageFile, JpegImagePlugin, UnidentifiedImageError

from cbir.core.errors import ImageError
from cbir.core.images.containers.bare_file import BareFile
from cbir.core.images.containers.boxes import jpeg_xl_size
from cbir.core.images.formats import EXTRA_FORMATS, bare_file, enable_extra_format, readable_formats, sniff_format
from cbir.core.images.halving import scale_for
from cbir.core.images.orientation import exif_orientation

__all__ = [
    "DecodeLimits",
    "OpenedImage",
    "decoder_errors",
    "is_within",
    "open_bare",
    "open_image",
    "strip_metadata",
]

#: What Pillow's decoders raise on damaged files; AVIF's raises RuntimeError.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error, EOFError,
    ZeroDivisionError, OverflowError, RuntimeError, MemoryError, AssertionError,
)  # fmt: skip

#: How many times the limit a JPEG may have that is decoded at a reduced scale: reading over the rest takes time, if
#: hardly any memory.
_READ_OVER = 4


@dataclass(frozen=True)
class DecodeLimits:
    """Bounds on one image.

    Attributes:
        max_bytes: Largest file in bytes.
        max_pixels: Largest width times height, checked on the header before anything is decoded.  A JPEG is counted as
            it is decoded, see ``draft_side``, unless it is progressive, which is held whole; four times as many are
            the most in any case.
        draft_side: Where set, a picture much larger than this is given at a half, a quarter and so on of its size,
            such that its shorter side is still at least this many pixels.  JPEGs are decoded at that scale, in a
            quarter of the time.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = 100_000_000
    draft_side: int | None = 384

    def for_inputs(self, sides: Iterable[int]) -> DecodeLimits:
        """The same for models whose inputs have these sides in pixels.

        Half as many pixels again as the largest needs: the crop may leave out some, and what is resampled from hardly
        more pixels than it has is not as sharp as it could be.
        """
        if self.draft_side is None:
            return self
        return replace(self, draft_side=max((self.draft_side, *(3 * side // 2 for side in sides))))


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """An image whose header was read and found within the limits.

    Attributes:
        image: Nothing of it is decoded yet; the scale of a JPEG is set.
        bare: What it was opened from.
        format: Name as in :data:`~cbir.core.images.formats.FORMATS`, or ``HEIF`` or ``JXL``.
        width: Width of the upright original in pixels.
        height: Height of the upright original in pixels.
        orientation: 1..8 as in EXIF: how the stored pixels are turned.
        rawmode: Pillow's name of how its pixels are stored.
    """

    image: Image.Image
    bare: BareFile
    format: str
    width: int
    height: int
    orientation: int
    rawmode: str


def strip_metadata(data: bytes, limits: DecodeLimits) -> tuple[str, BareFile]:
    """Tell the format of a file's bytes, and leave out what no pixel needs.

    Raises:
        ImageError: As :func:`~cbir.core.images.decode_image`, for what the first bytes tell.
    """
    kind = _kind(data, limits)
    if kind == "JXL":
        # Its decoder tells the size only after it has decoded the picture.
        _check_jpeg_xl(data, limits)
    with decoder_errors(kind):
        return kind, bare_file(data, kind)


@contextmanager
def open_image(kind: str, bare: BareFile, limits: DecodeLimits) -> Iterator[OpenedImage]:
    """Open an image and check it against the limits.

    Raises:
        ImageError: As :func:`~cbir.core.images.decode_image`, for what the header tells.
    """
    with warnings.catch_warnings():
        # Pillow warns of large images, odd EXIF blocks and palette transparency, all of which are handled here.
        warnings.simplefilter("ignore")
        with open_bare(bare.data, kind, limits) as image:
            with decoder_errors(kind):
                opened = _checked(image, bare, kind, limits)
            yield opened


def open_bare(data: bytes, kind: str, limits: DecodeLimits) -> Image.Image:
    """Open a file without its metadata, and set the scale that a JPEG is decoded at."""
    try:
        if kind == "JPEG":
            # Not Image.open, whose own bound knows nothing of reduced scales.
            image: Image.Image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
            _reduce(image, limits)
            return image
        if Image.MAX_IMAGE_PIXELS is not None and limits.max_pixels > Image.MAX_IMAGE_PIXELS:
            # Pillow's own bound is lower than what was asked for.
            Image.MAX_IMAGE_PIXELS = limits.max_pixels
        return Image.open(io.BytesIO(data), formats=(kind,))
    except Image.DecompressionBombError:
        raise _too_many_pixels("an enormous number of", limits) from None
    except UnidentifiedImageError:
        raise _unknown(f"the bytes begin like {kind}, but no image can be read from them: export it again") from None
    except SyntaxError as error:
        raise _unknown(f"the bytes begin like {kind}, but are damaged ({error}): export it again") from None
    except _DECODER_ERRORS as error:
        raise _corrupt(error, kind) from error


@contextmanager
def decoder_errors(kind: str) -> Iterator[None]:
    """Turn what decoders raise into an :class:`~cbir.core.errors.ImageError`."""
    try:
        yield
    except _DECODER_ERRORS as error:
        text = str(error).lower()
        if "truncated" in text or "broken data stream" in text or "unexpected end" in text or not text:
            raise ImageError(
                f"the {kind} file is truncated or broken ({error}): send the whole file",
                reason="IMAGE_TRUNCATED",
                format=kind,
            ) from error
        raise _corrupt(error, kind) from error


def _corrupt(error: BaseException, kind: str = "image") -> ImageError:
    """The refusal of a damaged file."""
    detail = " ".join(str(error).split()) or type(error).__name__
    return ImageError(f"the {kind} file is damaged ({detail}): export it again", reason="IMAGE_CORRUPT", format=kind)


def _too_many_pixels(size: str, limits: DecodeLimits) -> ImageError:
    """The refusal of an image that is too large once decoded."""
    return ImageError(
        f"the image has {size} pixels, more than the limit of {limits.max_pixels:,}: shrink it first",
        reason="IMAGE_TOO_MANY_PIXELS",
        limit=limits.max_pixels,
    )


def is_within(limits: DecodeLimits, width: int, height: int, held: int) -> bool:
    """Whether an image of a size may be decoded of which so many pixels are held at once."""
    return held <= limits.max_pixels and width * height <= _READ_OVER * limits.max_pixels


def _kind(data: bytes, limits: DecodeLimits) -> str:
    """Tell the format of bytes that are few enough."""
    if not data:
        raise ImageError("the image is empty (0 bytes): send the bytes of an image file", reason="IMAGE_EMPTY")
    if len(data) > limits.max_bytes:
        raise ImageError(
            f"the image file has {len(data):,} bytes, more than the limit of {limits.max_bytes:,}: shrink it first",
            reason="IMAGE_TOO_LARGE",
            bytes=len(data),
            limit=limits.max_bytes,
        )
    kind = sniff_format(data)
    if kind is None:
        raise _unknown(f"the bytes are no image in a known format ({', '.join(readable_formats())})")
    if kind in EXTRA_FORMATS:
        enable_extra_format(kind)
    return kind


def _unknown(message: str) -> ImageError:
    return ImageError(message, reason="IMAGE_FORMAT")


def _checked(image: Image.Image, bare: BareFile, kind: str, limits: DecodeLimits) -> OpenedImage:
    width, height = getattr(image, "full_size", image.size)
    held = image.width * image.height
    if kind == "JPEG" and image.info.get("progressive"):
        # Its coefficients are held until the last scan, whatever the scale.
        held = width * height
    if not is_within(limits, width, height, held):
        raise _too_many_pixels(f"{width:,} x {height:,}", limits)
    if width < 1 or height < 1:
        raise ImageError(f"the image has no pixels ({width} x {height})", reason="IMAGE_CORRUPT")
    # What an AVIF's own boxes say about turning is told by Pillow as EXIF; HEIC is turned by its decoder.
    told = exif_orientation(image.info.get("exif") or b"") if kind == "AVIF" else None
    orientation = told or bare.orientation
    if orientation >= 5:
        width, height = height, width
    return OpenedImage(image, bare, kind, width, height, orientation, _rawmode(image))


def _check_jpeg_xl(data: bytes, limits: DecodeLimits) -> None:
    size = jpeg_xl_size(data)
    if size is None:
        raise ImageError(
            "the JXL file is truncated or broken (no size): send the whole file",
            reason="IMAGE_TRUNCATED",
            format="JXL",
        )
    width, height = size
    if width * height > limits.max_pixels:
        raise _too_many_pixels(f"{width:,} x {height:,}", limits)


def _reduce(image: Image.Image, limits: DecodeLimits) -> None:
    """Set the scale that a JPEG is decoded at."""
    width, height = image.size
    image.full_size = width, height  # type: ignore[attr-defined]
    # Long panoramas keep detail on their short side, which is what ends up in the square input.
    scale = min(8, scale_for(min(width, height), limits.draft_side))
    if scale > 1:
        image.draft("RGB", (width // scale, height // scale))


def _rawmode(image: Image.Image) -> str:
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else ()
    arguments = tiles[0].args if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""
