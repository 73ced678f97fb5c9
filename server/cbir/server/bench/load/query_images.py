"""Query images for a load: from a folder or archive, from the gallery, or drawn."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import grpc
import numpy as np
from PIL import Image

from cbir.core.errors import SourceError
from cbir.v1 import search_pb2, search_pb2_grpc

__all__ = ["drawn_images", "fetch_images", "read_images"]

T = TypeVar("T")

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}


def read_images(source: Path, most: int) -> list[bytes]:
    """The files of up to ``most`` images of a folder or ``.zip``, spread evenly over all of its images.

    Raises:
        SourceError: ``SOURCE_EMPTY`` or ``SOURCE_UNREADABLE``.
    """
    try:
        if source.is_dir():
            found = sorted(path for path in source.rglob("*") if path.suffix.lower() in _SUFFIXES)
            files = [path.read_bytes() for path in _spread(found, most)]
        else:
            with zipfile.ZipFile(source) as archive:
                names = sorted(name for name in archive.namelist() if Path(name).suffix.lower() in _SUFFIXES)
                files = [archive.read(name) for name in _spread(names, most)]
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"no images can be read from {source} ({error}): give a folder or a .zip", reason="SOURCE_UNREADABLE"
        ) from error
    if not files:
        raise SourceError(f"there are no images in {source}: give a folder or a .zip of some", reason="SOURCE_EMPTY")
    return files


async def fetch_images(address: str, ids: Sequence[str], most: int) -> list[bytes]:
    """Up to ``most`` images of the gallery, fetched from the server; those whose file is gone are left out."""
    files = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = search_pb2_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]
        for name in _spread(ids, most):
            request = search_pb2.GetImageRequest(image_id=name)
            try:
                files.append(b"".join([part.chunk async for part in stub.GetImage(request)]))
            except grpc.aio.AioRpcError:
                if not files:
                    return []  # the server cannot read the gallery's files
    return files


def drawn_images(count: int, width: int = 640, height: int = 480) -> list[bytes]:
    """Random JPEGs of soft shapes with a little noise, about as many bytes as photos of that size."""
    files = []
    y, x = np.mgrid[0:height, 0:width] / width
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = np.full((height, width, 3), 128.0)
        for scale in (4, 9, 20, 45):
            wave = np.sin(scale * (x * rng.normal() + y * rng.normal()) + rng.uniform(0, 6))
            pixels += wave[..., None] * rng.uniform(-180, 180, 3) / scale**0.5
        pixels += rng.normal(0, 6, pixels.shape)
        file = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    return files


def _spread(items: Sequence[T], most: int) -> list[T]:
    if len(items) <= most:
        return list(items)
    return [items[place] for place in np.linspace(0, len(items) - 1, most).astype(int).tolist()]
