"""Queries and search options: small values that hold no resources."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict, Union

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["Crop", "Embedding", "Fusion", "ImageId", "Query", "SearchOptions", "Text"]


class Fusion(StrEnum):
    """A rule that merges the members' rankings into one."""

    WEIGHTED_VOTE = "weighted-vote"
    """Adds the members' cosine similarities, each times its weight."""
    RECIPROCAL_RANK = "reciprocal-rank"
    """Adds weight / (60 + rank) over the members."""


class Crop(StrEnum):
    """How an image is cropped before it is embedded."""

    NONE = "none"
    """The whole image."""
    BORDER = "border"
    """Uniform borders are trimmed."""
    CONTENT = "content"
    """The largest plausible picture inside a screenshot or frame, without its borders."""


@dataclass(frozen=True, slots=True)
class ImageId:
    """A query by the id of an image of the gallery (a plain ``str`` is a path).

    Attributes:
        id: The image's id, as in :attr:`cbir.client.Hit.image_id`.
    """

    id: str


@dataclass(frozen=True, slots=True)
class Embedding:
    """A query by embeddings that were computed elsewhere, with the same ensemble.

    Attributes:
        vectors: Member name -> vector before the index's projection, a list or one-dimensional array of length
            ``embedding_dim``. Members that are left out do not vote.
    """

    vectors: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Text:
    """A query by text; the ensemble needs a member with a text tower (``IndexInfo.members[i].text``).

    Attributes:
        text: At most 1,000 characters; models read only about the first 77 tokens.
    """

    text: str


class ImageFile(Protocol):
    """An open file, or anything that is read like one."""

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes."""


class ImageArray(Protocol):
    """A NumPy array, or another that shows its memory in the same way: (H, W), (H, W, 3) or (H, W, 4), uint8."""

    @property
    def __array_interface__(self) -> Mapping[str, Any]: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Height and width in pixels, and the number of channels."""


#: What to search for: an image as bytes of its file, the file's path, the open file, a PIL image or an array, or one of
#: the values above.
Query: TypeAlias = Union[
    bytes, bytearray, memoryview, str, os.PathLike[str], ImageFile, "PIL.Image.Image", ImageArray, ImageId, Embedding,
    Text,
]  # fmt: skip


class SearchOptions(TypedDict, total=False):
    """The options of :meth:`cbir.client.Client.search`; ``None`` always means the server's default."""

    limit: int | None
    """The largest number of hits; default 10."""
    min_score: float | None
    """Hits with a lower score (0..1) are left out, so that fewer than ``limit`` may come back."""
    fusion: Fusion | str | None
    """The rule that merges the members' opinions; default the weighted vote."""
    weights: Mapping[str, float] | None
    """The weight of each member in this query; members that are left out have weight 0."""
    labels: str | Iterable[str] | None
    """Labels of which a hit must carry one; examples need not."""
    exclude_labels: str | Iterable[str] | None
    """Labels that a hit must not carry."""
    metadata: Mapping[str, str | Iterable[str]] | None
    """Metadata columns with the values of which a hit must carry one."""
    exclude_query: bool
    """Leaves the query image itself out, be it by its bytes or as a near duplicate: the same picture re-encoded,
    resized, brightened or slightly cut. Where positive examples alone are the query, likewise their duplicates."""
    mark_near_duplicates: bool
    """Marks the hits that ``exclude_query`` would leave out (:attr:`cbir.client.Hit.near_duplicate`)."""
    crop: Crop | str | None
    """The crop of the query image; default the rule the gallery was indexed with."""
    positive_ids: Iterable[str] | None
    """Ids of gallery images that show what is meant: the query moves towards them. They do not come back as hits.
    Without a query they take its place. Both lists together are bounded by the server (256 ids by default)."""
    negative_ids: Iterable[str] | None
    """Ids of gallery images that do not show what is meant: the query moves away from them. They do not come back."""
    max_side: int | None
    """An image whose longer side has more pixels is shrunk to this before it is sent (needs Pillow), in place of what
    the client's ``downscale`` would do. The crop box in the result is then in pixels of the smaller image."""
