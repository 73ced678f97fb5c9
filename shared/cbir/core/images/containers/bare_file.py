"""An image file without its metadata, which can then do no harm: a broken date must not cost a picture."""

from __future__ import annotations

from dataclasses import dataclass

from cbir.core.errors import ImageError

__all__ = ["BareFile", "too_many_parts"]


@dataclass(frozen=True, slots=True)
class BareFile:
    """What the decoder gets, and the facts that were taken out of the rest.

    Attributes:
        data: The file, of which what no pixel needs was left out.
        orientation: 1..8 as in EXIF: how the stored pixels are to be turned.
        profile: An ICC profile, as it is.
        no_data: The value that stands for "nothing was measured here" (GDAL's tag in TIFFs).
    """

    data: bytes
    orientation: int = 1
    profile: bytes | None = None
    no_data: float | None = None


def too_many_parts(kind: str, most: int) -> ImageError:
    """The refusal of a file that is cut into more parts than any program writes; walking over them takes time."""
    return ImageError(
        f"the {kind} file has more than {most:,} parts before its end: export it again",
        reason="IMAGE_CORRUPT",
        format=kind,
    )
