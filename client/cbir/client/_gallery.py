"""What a server tells of its gallery: images in a listing, and the values by which they can be told apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ["Facet", "Facets", "GalleryImage", "ImagePage"]


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """One image of the gallery.

    Attributes:
        image_id: Its id, as searches and :meth:`cbir.client.Client.image` take it.
        label: Its label; None if it has none.
        width: Width of the upright image in pixels.
        height: Height of the upright image in pixels.
        metadata: Its metadata columns.
    """

    image_id: str
    label: str | None
    width: int
    height: int
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ImagePage:
    """A page of a listing; its length and its items are those of ``images``.

    Attributes:
        images: The images, in the order of their ids.
        next_page_token: Asks for the next page; empty after the last.
        total: How many images meet the condition, on all pages.
        index_version: The version of the index that was listed.
    """

    images: tuple[GalleryImage, ...]
    next_page_token: str
    total: int
    index_version: str

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[GalleryImage]:
        return iter(self.images)


@dataclass(frozen=True, slots=True)
class Facet:
    """The label, or a metadata column.

    Attributes:
        values: How many images have each value; the values that most images have come first, others may be left out.
        distinct: How many values there are in all.
    """

    values: Mapping[str, int]
    distinct: int


@dataclass(frozen=True, slots=True)
class Facets:
    """What the filters ``labels=`` and ``metadata=`` can name.

    Attributes:
        labels: The labels.
        metadata: The metadata columns by name.
        index_version: The version of the index.
    """

    labels: Facet
    metadata: Mapping[str, Facet]
    index_version: str
