"""The formats that are decoded, told by the first bytes; everything else stays shut, so the attack surface is small."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from typing import Any

from cbir.core.errors import ImageError
from cbir.core.images.containers.bare_file import BareFile
from cbir.core.images.containers.boxes import bare_items, bare_jpeg_xl, brands
from cbir.core.images.containers.chunks import PNG_START, bare_png, bare_webp
from cbir.core.images.containers.jpeg import bare_jpeg
from cbir.core.images.containers.tiff import bare_tiff

__all__ = [
    "ALL_FORMATS",
    "EXTRA_FORMATS",
    "FORMATS",
    "bare_file",
    "enable_extra_format",
    "readable_formats",
    "sniff_format",
]

#: What Pillow decodes itself.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

#: What it decodes with a package of the extra ``formats``: the format and the package.
EXTRA_FORMATS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}

#: Whatever can be decoded on some machine.
ALL_FORMATS = (*FORMATS, *EXTRA_FORMATS)

_PLUGINS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl.JpegXLImagePlugin"}
_HEIC = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))
_STARTS = (
    (b"\xff\xd8\xff", "JPEG"), (PNG_START, "PNG"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"), (b"BM", "BMP"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"), (b"MM*\0", "TIFF"),
    (b"II\0*", "TIFF"), (b"\xff\x0a", "JXL"), (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
)  # fmt: skip
_BARE: dict[str, Callable[[bytes], BareFile]] = {
    "JPEG": bare_jpeg, "PNG": bare_png, "WEBP": bare_webp, "TIFF": bare_tiff, "AVIF": bare_items, "HEIF": bare_items,
    "JXL": bare_jpeg_xl,
}  # fmt: skip

_lock = threading.Lock()
_enabled: dict[str, bool] = {}


def sniff_format(data: bytes) -> str | None:
    """Tell the format by the first bytes, ``None`` where it is none that may be decoded."""
    for start, name in _STARTS:
        if data.startswith(start):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    known = brands(data)
    if known & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIF" if known & _HEIC else None


def bare_file(data: bytes, kind: str) -> BareFile:
    """Leave out of a file of the format what no pixel needs.

    Raises:
        ImageError: ``IMAGE_CORRUPT``: it is cut into absurdly many parts.
    """
    bare = _BARE.get(kind)
    return bare(data) if bare else BareFile(data)


def enable_extra_format(kind: str) -> None:
    """Teach Pillow a format of :data:`EXTRA_FORMATS`; once a process.

    Raises:
        ImageError: ``IMAGE_FORMAT``: the package is not installed.
    """
    with _lock:
        if kind not in _enabled:
            _enabled[kind] = _register(kind)
    if not _enabled[kind]:
        name = {"HEIF": "HEIC", "JXL": "JPEG XL"}[kind]
        raise ImageError(
            f"the image is {name}, which is read with the extra 'formats': pip install 'ensemble-cbir[formats]'",
            reason="IMAGE_FORMAT",
            format=kind,
        )


def readable_formats() -> tuple[str, ...]:
    """The formats that can be decoded on this machine."""
    installed = (kind for kind, package in EXTRA_FORMATS.items() if importlib.util.find_spec(package) is not None)
    return (*FORMATS, *installed)


def _register(kind: str) -> bool:
    try:
        plugin: Any = importlib.import_module(_PLUGINS[kind])
        if kind == "HEIF":
            # Images are decoded side by side as it is, and only the picture itself is wanted.
            plugin.register_heif_opener(decode_threads=1, thumbnails=False, aux_images=False, depth_images=False)
        else:
            plugin.DECODE_THREADS = 0
    except ImportError:
        return False
    return True
