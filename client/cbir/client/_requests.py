"""Requests: from the user's types to the API's messages."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Unpack

from cbir.client._arguments import mapping, real, text_of, texts, whole
from cbir.client._downscale import WORTHWHILE_BYTES, WORTHWHILE_PIXELS, downscaled
from cbir.client._errors import InvalidQuery
from cbir.client._image_source import from_array, image_bytes, is_array, is_pil_image, read_file
from cbir.client._queries import Crop, Embedding, Fusion, ImageId, Query, SearchOptions, Text
from cbir.v1 import search_pb2

__all__ = ["CROPS", "Filled", "RequestTemplate", "image_listing", "image_request", "one_query"]

_FUSIONS = {
    Fusion.WEIGHTED_VOTE: search_pb2.FUSION_WEIGHTED_VOTE,
    Fusion.RECIPROCAL_RANK: search_pb2.FUSION_RECIPROCAL_RANK,
}
CROPS = {
    Crop.NONE: search_pb2.CROP_NONE,
    Crop.BORDER: search_pb2.CROP_BORDER,
    Crop.CONTENT: search_pb2.CROP_CONTENT,
}
__BYTES = (bytes, bytearray, memoryview)


_BYTES = (bytes, bytearray, memoryview)


def one_query(
    query: Query | None,
    image_id: str | None,
    embedding: Embedding | Mapping[str, Sequence[float]] | None,
    text: str | None,
    has_positives: bool = False,
) -> Query | None:
    """Return the one query that was given, by position or by name.

    Args:
        has_positives: Whether there are positive examples, which may stand alone; the result may then be None.

    Raises:
        TypeError: More than one query was given, or nothing to search for.
    """
    given: list[Query] = [] if query is None else [query]
    if image_id is not None:
        given.append(ImageId(image_id))
    if embedding is not None:
        given.append(embedding if isinstance(embedding, Embedding) else Embedding(embedding))
    if text is not None:
        given.append(Text(text))
    if not given and has_positives:
        return None
    if len(given) != 1:
        raise TypeError(
            f"{len(given)} queries were given: give one image, image_id=, embedding= or text=, or positive_ids= alone"
        )
    return given[0]


@dataclass(frozen=True, slots=True)
class Filled:
    """A message for one query.

    Attributes:
        message: The message.
        ratio: Width and height of the query image divided by those of what is sent in its place; None: it is sent as
            it is.
    """

    message: search_pb2.SearchRequest
    ratio: tuple[float, float] | None = None


class RequestTemplate:
    """A request with all options, checked once, to which each query is added.

    Args:
        max_bytes: Size in bytes of the largest image that is sent.
        options: The options of the search.

    Raises:
        InvalidQuery: A value that cannot be sent.
        TypeError: An option that does not exist.
    """

    def __init__(self, max_bytes: int, **options: Unpack[SearchOptions]) -> None:
        unknown = options.keys() - SearchOptions.__annotations__.keys()
        if unknown:
            known = ", ".join(SearchOptions.__annotations__)
            raise TypeError(f"unknown option {sorted(unknown)[0]!r}: known are {known}")
        self._max_bytes = max_bytes
        self._max_side = options.get("max_side")
        if self._max_side is not None:
            whole("max_side", self._max_side, "a positive number of pixels")
        self._request = search_pb2.SearchRequest()
        self._request.query.positive_ids.extend(texts("positive_ids", options.get("positive_ids")))
        self._request.query.negative_ids.extend(texts("negative_ids", options.get("negative_ids")))
        wire = self._request.options
        limit = options.get("limit")
        if limit is not None:
            # On the wire 0 means the default, which is not what a caller who writes 0 means.
            wire.limit = whole("limit", limit, "at least 1 hit")
        min_score = options.get("min_score")
        if min_score is not None:
            wire.min_score = real("min_score", min_score, "a number from 0 to 1")
        fusion = options.get("fusion")
        if fusion is not None:
            wire.fusion = _FUSIONS[_choice(Fusion, fusion, "fusion")]
        crop = options.get("crop")
        if crop is not None:
            wire.crop = CROPS[_choice(Crop, crop, "crop")]
        for member, weight in mapping("weights", options.get("weights"), "a number").items():
            wire.weights[member] = real(f"the weight of member {member!r}", weight, "a number", "BAD_WEIGHTS")
        condition = _filter(options.get("labels"), options.get("exclude_labels"), options.get("metadata"))
        if condition.ByteSize():
            wire.filter.CopyFrom(condition)
        if not isinstance(exclude := options.get("exclude_query", False), (bool, NoneType)):
            raise InvalidQuery(f"exclude_query is {exclude!r}: give True or False", reason="BAD_EXCLUDE_QUERY")
        wire.exclude_query = bool(exclude)
        if not isinstance(mark := options.get("mark_near_duplicates", False), (bool, NoneType)):
            raise InvalidQuery(
                f"mark_near_duplicates is {mark!r}: give True or False", reason="BAD_MARK_NEAR_DUPLICATES"
            )
        wire.mark_near_duplicates = bool(mark)

    @property
    def has_positives(self) -> bool:
        """Whether there are positive examples, with which no query is needed."""
        return bool(self._request.query.positive_ids)

    def blocks(self, query: Query | None) -> bool:
        """Whether :meth:`fill` reads a file or encodes an image, which must not be done in an event loop."""
        if isinstance(query, _BYTES):
            return self._max_side is not None or len(query) >= WORTHWHILE_BYTES
        return query is not None and not isinstance(query, (ImageId, Text, Embedding))

    def is_large(self, query: Query | None) -> bool:
        """Whether the query is an image that may be worth making smaller before it is sent."""
        if self._max_side is not None:
            return False
        if isinstance(query, _BYTES):
            return len(query) >= WORTHWHILE_BYTES
        if isinstance(query, (str, os.PathLike)):
            try:
                return os.stat(query).st_size >= WORTHWHILE_BYTES  # noqa: PTH116 - any kind of path
            except (OSError, ValueError):
                return False
        if is_pil_image(query):
            return query.width * query.height >= WORTHWHILE_PIXELS
        if is_array(query):
            return math.prod(query.shape[:2]) >= WORTHWHILE_PIXELS  # type: ignore[union-attr]
        # A file is known when it has been read.
        return hasattr(query, "read")

    def fill(self, query: Query | None, side: int | None = None) -> Filled:
        """Return the message for one query.

        Args:
            query: None for the positive examples alone.
            side: Length in pixels of the shorter side of an image that the server can use; None: images are sent as
                they are.

        Raises:
            InvalidQuery: The image cannot be read or sent.
            TypeError: The query is of an unknown kind, or there is neither a query nor a positive example.
        """
        request = search_pb2.SearchRequest()
        request.CopyFrom(self._request)
        if query is None:
            if not self.has_positives:
                raise TypeError("a query is None: give what to look for, or positive_ids=")
        elif isinstance(query, ImageId):
            request.query.image_id = text_of("image_id", query.id)
        elif isinstance(query, Text):
            request.query.text = text_of("text", query.text)
        elif isinstance(query, Embedding):
            # Set the field even if there are no vectors, so that the server can refuse the embedding as empty.
            request.query.embedding.SetInParent()
            for member, vector in mapping("embedding", query.vectors, "its vector").items():
                try:
                    request.query.embedding.vectors[member].values.extend(vector)
                except (TypeError, ValueError) as error:
                    raise InvalidQuery(
                        f"the embedding of member {member!r} is no row of numbers: give one list of them",
                        reason="BAD_EMBEDDING",
                    ) from error
        else:
            request.query.image, ratio = self._image(query, side)
            return Filled(request, ratio)
        return Filled(request)

    def _image(self, query: Any, side: int | None) -> tuple[bytes, tuple[float, float] | None]:
        if is_array(query):
            query = from_array(query)
        elif not isinstance(query, (*_BYTES, str, os.PathLike)) and not is_pil_image(query):
            if not hasattr(query, "read"):
                kind = type(query).__name__
                raise TypeError(
                    f"a query cannot be a {kind}: give bytes, a path, an open file, a PIL image, an array, ImageId, "
                    "Embedding or Text"
                )
            query = read_file(query, self._max_bytes)
        if side is not None and self.is_large(query):
            smaller = downscaled(bytes(query) if isinstance(query, _BYTES) else query, side)
            if smaller is not None and len(smaller[0]) < min(_size(query), self._max_bytes + 1):
                return smaller
        return image_bytes(query, max_side=self._max_side, max_bytes=self._max_bytes), None


def _size(query: Any) -> float:
    """Bytes of an image that is a file already."""
    if isinstance(query, _BYTES):
        return len(query)
    return os.stat(query).st_size if isinstance(query, (str, os.PathLike)) else math.inf  # noqa: PTH116 - any path


def image_request(image_id: str, thumbnail: int | None) -> search_pb2.GetImageRequest:
    """Return the request for an image of the gallery.

    Raises:
        InvalidQuery: A value that cannot be sent.
    """
    side = None if thumbnail is None else whole("thumbnail", thumbnail, "a positive number of pixels")
    return search_pb2.GetImageRequest(image_id=text_of("image_id", image_id), thumbnail=side)


def image_listing(
    labels: str | Iterable[str] | None,
    exclude_labels: str | Iterable[str] | None,
    metadata: Mapping[str, str | Iterable[str]] | None,
    prefix: str,
    page_size: int,
    page_token: str,
) -> search_pb2.ListImagesRequest:
    """Return the request for a page of the gallery.

    Raises:
        InvalidQuery: A value that cannot be sent.
    """
    return search_pb2.ListImagesRequest(
        filter=_filter(labels, exclude_labels, metadata),
        id_prefix=text_of("prefix", prefix),
        page_size=whole("page_size", page_size, "at least 1 image"),
        page_token=text_of("page_token", page_token),
    )


def _filter(
    labels: str | Iterable[str] | None,
    exclude_labels: str | Iterable[str] | None,
    metadata: Mapping[str, str | Iterable[str]] | None,
) -> search_pb2.Filter:
    return search_pb2.Filter(
        labels=texts("labels", labels),
        exclude_labels=texts("exclude_labels", exclude_labels),
        metadata={
            column: search_pb2.StringList(values=texts(f"metadata[{column!r}]", values, "BAD_METADATA"))
            for column, values in mapping("metadata", metadata, "the values wanted").items()
        },
    )


def _choice(kind: Any, value: str, name: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise InvalidQuery(
            f"{name} is {value!r}: choose one of {', '.join(kind)}", reason=f"BAD_{name.upper()}"
        ) from None
