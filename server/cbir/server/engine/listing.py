"""What is in the gallery: its images page by page, and the values by which they can be told apart."""

from __future__ import annotations

import base64
import binascii
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from cbir.core.artifacts import Gallery, GalleryImage
from cbir.core.errors import QueryError, UnknownImageError
from cbir.server.engine.query import Filter

__all__ = ["Facet", "Facets", "Page", "facets", "list_page"]

#: Most values of a facet, and most metadata columns, that are told.
MOST_VALUES, MOST_COLUMNS = 1000, 100
MOST_IMAGES = 1000
#: Bytes of text after which a page ends, so that clients take it whose messages are limited to gRPC's default of 4 MiB.
_PAGE_BYTES = 2**20
_LONGEST_TOKEN = 2**16


@dataclass(frozen=True)
class Page:
    """A page of the gallery.

    Attributes:
        images: In the order of their ids.
        token: Asks for the next page; empty after the last.
        total: How many images meet the condition, on all pages.
    """

    images: tuple[GalleryImage, ...]
    token: str
    total: int


@dataclass(frozen=True)
class Facet:
    """The label, or a metadata column.

    Attributes:
        values: The values that most images have with the number of these images, those of most images first.
        distinct: How many values there are in all.
    """

    values: tuple[tuple[str, int], ...]
    distinct: int


@dataclass(frozen=True)
class Facets:
    """What a filter can name: labels, and metadata columns by name."""

    labels: Facet
    metadata: Mapping[str, Facet]


def list_page(gallery: Gallery, condition: Filter, prefix: str, size: int, token: str) -> Page:
    """List images in the order of their ids.  Blocks.

    Args:
        prefix: What their ids begin with.
        size: Most images on the page; at most 1,000 whatever it says.
        token: That of the page before; empty for the first.  It also goes on in another version of the gallery.

    Raises:
        QueryError: ``BAD_FILTER`` or ``BAD_PAGE_TOKEN``.
    """
    ids = gallery.ids
    low = bisect_left(ids, prefix)
    high = bisect_right(ids, prefix, low, key=lambda name: name[: len(prefix)])
    mask = gallery.mask(condition.labels, condition.exclude_labels, condition.metadata)
    rows = np.arange(low, high) if mask is None else low + np.flatnonzero(mask[low:high])
    start = int(np.searchsorted(rows, _row_after(gallery, token))) if token else 0
    images: list[GalleryImage] = []
    used = 0
    for row in rows[start : start + min(size, MOST_IMAGES)].tolist():
        image = gallery[row]
        used += len(image.id) + sum(len(key) + len(value) for key, value in image.metadata.items())
        if images and used > _PAGE_BYTES:
            break
        images.append(image)
    is_last = start + len(images) >= len(rows)
    return Page(tuple(images), "" if is_last else _token(images[-1].id), len(rows))


def _token(last: str) -> str:
    return base64.urlsafe_b64encode(last.encode(errors="surrogatepass")).decode()


def _row_after(gallery: Gallery, token: str) -> int:
    try:
        if len(token) > _LONGEST_TOKEN:
            raise ValueError("it is too long")
        last = base64.b64decode(token, altchars=b"-_", validate=True).decode(errors="surrogatepass")
    except (ValueError, binascii.Error):
        raise QueryError(
            "the page_token is none that this server gave: begin with the first page, without one",
            reason="BAD_PAGE_TOKEN",
        ) from None
    try:
        return gallery.row(last) + 1
    except UnknownImageError:
        # The image has left the gallery since.
        return bisect_right(gallery.ids, last)


_known: WeakKeyDictionary[Gallery, Facets] = WeakKeyDictionary()
_counting = threading.Lock()


def facets(gallery: Gallery) -> Facets:
    """Count the labels and the values of the metadata columns, once for each gallery.  Blocks."""
    with _counting:
        if gallery not in _known:
            _known[gallery] = _count(gallery)
        return _known[gallery]


def _count(gallery: Gallery) -> Facets:
    counts = np.bincount(gallery.label_codes[gallery.label_codes >= 0], minlength=len(gallery.labels))
    # Stable, so that labels of equally many images come in their order.
    order = np.argsort(-counts, kind="stable")[:MOST_VALUES].tolist()
    labels = Facet(tuple((gallery.labels[code], int(counts[code])) for code in order), len(gallery.labels))
    columns = gallery.metadata_counts(MOST_COLUMNS, MOST_VALUES)
    return Facets(labels, {name: Facet(values, distinct) for name, (values, distinct) in columns.items()})
