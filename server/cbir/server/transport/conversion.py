"""Between the messages of ``cbir.v1`` and the engine's own types.  Protobuf stops here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from cbir.core.errors import QueryError
from cbir.core.images import Crop
from cbir.core.version import __version__
from cbir.core.vote import Fusion
from cbir.server.engine import (
    Embedding,
    EngineInfo,
    EngineQuery,
    Facet,
    Facets,
    Filter,
    ImageBytes,
    Page,
    Source,
    StoredImage,
    Text,
)
from cbir.server.limits import Limits
from cbir.v1 import search_pb2

__all__ = ["DEFAULT_LIMIT", "facets_response", "filter_from", "index_info", "page_response", "query_from_request"]

#: What an unset limit means.
DEFAULT_LIMIT = 10
#: Letters of the values of labels, and of those of all metadata columns, that are told of facets.
_FACET_BYTES = 2**20

_FUSIONS: Mapping[search_pb2.Fusion, Fusion] = {
    search_pb2.FUSION_UNSPECIFIED: Fusion.WEIGHTED_VOTE,
    search_pb2.FUSION_WEIGHTED_VOTE: Fusion.WEIGHTED_VOTE,
    search_pb2.FUSION_RECIPROCAL_RANK: Fusion.RECIPROCAL_RANK,
}
_CROPS: Mapping[search_pb2.Crop, Crop | None] = {
    search_pb2.CROP_UNSPECIFIED: None,
    search_pb2.CROP_NONE: Crop.NONE,
    search_pb2.CROP_BORDER: Crop.BORDER,
    search_pb2.CROP_CONTENT: Crop.CONTENT,
}
_CROP_NUMBERS = {crop: number for number, crop in _CROPS.items()}


def query_from_request(request: search_pb2.SearchRequest, image: bytes) -> EngineQuery:
    """Read a request.

    Args:
        image: What stands in place of its own image, which is empty.

    Raises:
        QueryError: An enum value that this server does not know.
    """
    query = request.query
    source, positives, negatives = _source(query, image), tuple(query.positive_ids), tuple(query.negative_ids)
    if not request.HasField("options"):
        return EngineQuery(source, positives, negatives, DEFAULT_LIMIT)
    options = request.options
    if options.fusion not in _FUSIONS:
        raise QueryError(f"fusion is {options.fusion}, which this server does not know", reason="BAD_FUSION")
    if options.crop not in _CROPS:
        raise QueryError(f"crop is {options.crop}, which this server does not know", reason="BAD_CROP")
    return EngineQuery(
        source=source,
        positive_ids=positives,
        negative_ids=negatives,
        limit=options.limit or DEFAULT_LIMIT,
        min_score=options.min_score if options.HasField("min_score") else None,
        fusion=_FUSIONS[options.fusion],
        weights=dict(options.weights) or None,
        filter=filter_from(options.filter),
        exclude_query=options.exclude_query,
        crop=_CROPS[options.crop],
        mark_near_duplicates=options.mark_near_duplicates,
    )


def filter_from(condition: search_pb2.Filter) -> Filter:
    """Read a condition on images."""
    return Filter(
        tuple(condition.labels),
        tuple(condition.exclude_labels),
        {column: tuple(alternatives.values) for column, alternatives in condition.metadata.items()},
    )


def _source(query: search_pb2.Query, image: bytes) -> Source | None:
    kind = query.WhichOneof("source")
    if kind == "image":
        return ImageBytes(image)
    if kind == "image_id":
        return StoredImage(query.image_id)
    if kind == "embedding":
        vectors = query.embedding.vectors
        # Not by items(), which protobuf leaves to Python's abstract classes.
        return Embedding({name: _floats(vectors[name]) for name in vectors})
    if kind == "text":
        return Text(query.text)
    return None


def _floats(vector: search_pb2.Vector) -> NDArray[np.float32]:
    """(D,) float32, read-only: the packed numbers themselves, as reading them one by one takes 20 times longer."""
    count = len(vector.values)
    data = vector.SerializeToString()
    size = 4 * count
    header = len(data) - size
    # A tag of one byte and the length; anything else in there comes from a newer client.
    if count and header == 1 + (size.bit_length() + 6) // 7:
        return np.frombuffer(data, "<f4", count, header)
    return np.array(vector.values, dtype=np.float32)


def index_info(info: EngineInfo, limits: Limits) -> search_pb2.GetIndexInfoResponse:
    """Write what is loaded."""
    return search_pb2.GetIndexInfoResponse(
        version=info.version,
        created_at=_timestamp(info.created),
        images=info.images,
        labels=info.labels,
        ensemble=info.ensemble,
        members=[search_pb2.MemberInfo(**vars(member)) for member in info.members],
        crop=_CROP_NUMBERS[info.crop],
        max_limit=limits.max_limit,
        max_image_bytes=limits.max_image_bytes,
        server_version=__version__,
        index=info.index,
        query_side=info.query_side,
    )


def page_response(page: Page, version: str) -> search_pb2.ListImagesResponse:
    """Write a page of the gallery."""
    return search_pb2.ListImagesResponse(
        images=[
            search_pb2.GalleryImage(
                image_id=image.id, label=image.label, width=image.width, height=image.height, metadata=image.metadata
            )
            for image in page.images
        ],
        next_page_token=page.token,
        total=page.total,
        index_version=version,
    )


def facets_response(found: Facets, limit: int, version: str) -> search_pb2.GetFacetsResponse:
    """Write what filters can name, the first ``limit`` values of each facet."""
    return search_pb2.GetFacetsResponse(
        labels=_facet(found.labels, limit, _FACET_BYTES),
        # Shared out, so that many columns of long values do not make a message that clients refuse.
        metadata={
            name: _facet(facet, limit, _FACET_BYTES // len(found.metadata)) for name, facet in found.metadata.items()
        },
        index_version=version,
    )


def _facet(facet: Facet, limit: int, most_bytes: int) -> search_pb2.Facet:
    written = search_pb2.Facet(distinct=facet.distinct)
    for value, images in facet.values[:limit]:
        most_bytes -= len(value)
        if most_bytes < 0:
            break
        written.values.add(value=value, images=images)
    return written


def _timestamp(text: str) -> Timestamp | None:
    """Read ISO 8601; a time without a zone is UTC.  None where a foreign writer left something else."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(time if time.tzinfo else time.replace(tzinfo=UTC))
    return stamp
