"""Conversion between the API's messages and the user's types; no other module of the client handles protobuf."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from typing import Any, Unpack

from cbir.client._errors import InvalidQuery, ServerError, TooLarge
from cbir.client._image_source import image_bytes, is_pil_image
from cbir.client._queries import Crop, Embedding, Fusion, ImageId, Query, SearchOptions, Text
from cbir.client._results import (
    Box,
    Hit,
    ImageBytes,
    IndexInfo,
    LabelPrediction,
    MemberInfo,
    Reloaded,
    SearchResult,
    Timings,
    Vote,
)
from cbir.v1 import admin_pb2, search_pb2

__all__ = [
    "ImageAssembly",
    "RequestTemplate",
    "index_info",
    "one_query",
    "reloaded",
    "search_result",
]

_FUSIONS = {
    Fusion.WEIGHTED_VOTE: search_pb2.FUSION_WEIGHTED_VOTE,
    Fusion.RECIPROCAL_RANK: search_pb2.FUSION_RECIPROCAL_RANK,
}
_CROPS = {
    Crop.NONE: search_pb2.CROP_NONE,
    Crop.BORDER: search_pb2.CROP_BORDER,
    Crop.CONTENT: search_pb2.CROP_CONTENT,
}
_CROP_NAMES = {number: crop for crop, number in _CROPS.items()}
_LIMIT_TOP = 2**32 - 1


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
        self._request = search_pb2.SearchRequest()
        self._request.query.positive_ids.extend(_strings(options.get("positive_ids")))
        self._request.query.negative_ids.extend(_strings(options.get("negative_ids")))
        wire = self._request.options
        limit = options.get("limit")
        if limit is not None:
            # On the wire 0 means the default, which is not what a caller who writes 0 means.
            if not 1 <= limit <= _LIMIT_TOP:
                raise InvalidQuery(f"limit is {limit}: ask for at least 1 hit", reason="BAD_LIMIT")
            wire.limit = limit
        min_score = options.get("min_score")
        if min_score is not None:
            wire.min_score = min_score
        fusion = options.get("fusion")
        if fusion is not None:
            wire.fusion = _FUSIONS[_choice(Fusion, fusion, "fusion")]
        crop = options.get("crop")
        if crop is not None:
            wire.crop = _CROPS[_choice(Crop, crop, "crop")]
        wire.weights.update(options.get("weights") or {})
        condition = search_pb2.Filter(
            labels=_strings(options.get("labels")),
            exclude_labels=_strings(options.get("exclude_labels")),
            metadata={
                column: search_pb2.StringList(values=_strings(values))
                for column, values in (options.get("metadata") or {}).items()
            },
        )
        if condition.ByteSize():
            wire.filter.CopyFrom(condition)
        wire.exclude_query = options.get("exclude_query", False)

    @property
    def has_positives(self) -> bool:
        """Whether there are positive examples, with which no query is needed."""
        return bool(self._request.query.positive_ids)

    def blocks(self, query: Query | None) -> bool:
        """Whether :meth:`fill` reads a file or encodes an image, which must not be done in an event loop."""
        if isinstance(query, (bytes, bytearray, memoryview)):
            return self._max_side is not None
        return query is not None and not isinstance(query, (ImageId, Text, Embedding))

    def fill(self, query: Query | None) -> search_pb2.SearchRequest:
        """Return the message for one query.

        Args:
            query: None for the positive examples alone.

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
            request.query.image_id = query.id
        elif isinstance(query, Text):
            request.query.text = query.text
        elif isinstance(query, Embedding):
            # Set the field even if there are no vectors, so that the server can refuse the embedding as empty.
            request.query.embedding.SetInParent()
            for member, vector in query.vectors.items():
                request.query.embedding.vectors[member].values.extend(vector)
        elif isinstance(query, (bytes, bytearray, memoryview, str, os.PathLike)) or is_pil_image(query):
            request.query.image = image_bytes(query, max_side=self._max_side, max_bytes=self._max_bytes)
        else:
            kind = type(query).__name__
            raise TypeError(f"a query cannot be a {kind}: give bytes, a path, a PIL image, ImageId, Embedding or Text")
        return request


def search_result(wire: search_pb2.SearchResponse) -> SearchResult:
    """Convert an answer."""
    return SearchResult(
        hits=tuple(_hit(hit) for hit in wire.hits),
        labels=tuple(LabelPrediction(item.label, item.probability) for item in wire.labels),
        crop=Box(wire.crop.left, wire.crop.top, wire.crop.right, wire.crop.bottom) if wire.HasField("crop") else None,
        index_version=wire.index_version,
        timings=Timings(
            *(
                getattr(wire.timings, stage).ToNanoseconds() / 1e9
                for stage in ("decode", "queue", "embed", "search", "fuse")
            )
        ),
    )


def _hit(wire: search_pb2.Hit) -> Hit:
    return Hit(
        image_id=wire.image_id,
        uri=wire.uri,
        label=wire.label if wire.HasField("label") else None,
        score=wire.score,
        fused_score=wire.fused_score,
        label_contribution=wire.label_contribution,
        votes=tuple(Vote(vote.member, vote.rank, vote.similarity, vote.contribution) for vote in wire.votes),
        metadata=dict(wire.metadata),
    )


def index_info(wire: search_pb2.GetIndexInfoResponse) -> IndexInfo:
    """Convert the description of an index."""
    return IndexInfo(
        version=wire.version,
        created_at=wire.created_at.ToDatetime(UTC) if wire.HasField("created_at") else None,
        images=wire.images,
        labels=wire.labels,
        ensemble=wire.ensemble,
        members=tuple(
            MemberInfo(
                name=member.name,
                backend=member.backend,
                model=member.model,
                fingerprint=member.fingerprint,
                weight=member.weight,
                embedding_dim=member.embedding_dim,
                dim=member.dim,
                metric=member.metric,
                runtime=member.runtime,
                text=member.text,
            )
            for member in wire.members
        ),
        crop=_CROP_NAMES.get(wire.crop),
        max_limit=wire.max_limit,
        max_image_bytes=wire.max_image_bytes,
        server_version=wire.server_version,
        index=wire.index,
    )


def reloaded(wire: admin_pb2.ReloadIndexResponse) -> Reloaded:
    """Convert the answer to a reload."""
    return Reloaded(wire.previous_version, wire.version, wire.changed)


class ImageAssembly:
    """Assembles an image from its chunks, up to a maximum size."""

    def __init__(self, image_id: str, max_bytes: int) -> None:
        self._image_id = image_id
        self._max_bytes = max_bytes
        self._data = bytearray()
        self._media_type = ""
        self._total = 0

    def add(self, chunk: search_pb2.GetImageResponse) -> None:
        """Add the next chunk.

        Raises:
            TooLarge: The image has more bytes than allowed.
        """
        self._media_type = self._media_type or chunk.media_type
        self._total = self._total or chunk.total_bytes
        size = max(self._total, len(self._data) + len(chunk.chunk))
        if size > self._max_bytes:
            raise TooLarge(
                f"image {self._image_id!r} has {size:,} bytes, more than this client's limit of {self._max_bytes:,}: "
                "ask for a thumbnail or raise max_message_bytes"
            )
        self._data += chunk.chunk

    def finish(self) -> ImageBytes:
        """Return the whole image.

        Raises:
            ServerError: Bytes are missing, or there are too many.
        """
        if self._total and self._total != len(self._data):
            raise ServerError(
                f"the server sent {len(self._data):,} of the {self._total:,} bytes of image {self._image_id!r}: "
                "look at its log"
            )
        return ImageBytes(bytes(self._data), self._media_type)


def _choice(kind: Any, value: str, name: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise InvalidQuery(
            f"{name} is {value!r}: choose one of {', '.join(kind)}", reason=f"BAD_{name.upper()}"
        ) from None


def _strings(values: str | Iterable[str] | None) -> Iterable[str]:
    """Treat a single string as a list of one string, never as a list of its letters."""
    if values is None:
        return ()
    return (values,) if isinstance(values, str) else values
