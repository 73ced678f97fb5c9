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
from cbir.server.engine import Embedding, EngineInfo, EngineQuery, Filter, ImageBytes, Source, StoredImage, Text
from cbir.server.limits import Limits
from cbir.v1 import search_pb2

__all__ = ["DEFAULT_LIMIT", "index_info", "query_from_request"]

#: What an unset limit means.
DEFAULT_LIMIT = 10

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
    condition = options.filter
    return EngineQuery(
        source=source,
        positive_ids=positives,
        negative_ids=negatives,
        limit=options.limit or DEFAULT_LIMIT,
        min_score=options.min_score if options.HasField("min_score") else None,
        fusion=_FUSIONS[options.fusion],
        weights=dict(options.weights) or None,
        filter=Filter(
            tuple(condition.labels),
            tuple(condition.exclude_labels),
            {column: tuple(alternatives.values) for column, alternatives in condition.metadata.items()},
        ),
        exclude_query=options.exclude_query,
        crop=_CROPS[options.crop],
    )


def _source(query: search_pb2.Query, image: bytes) -> Source | None:
    kind = query.WhichOneof("source")
    if kind == "image":
        return ImageBytes(image)
    if kind == "image_id":
        return StoredImage(query.image_id)
    if kind == "embedding":
        return Embedding({name: _floats(vector) for name, vector in query.embedding.vectors.items()})
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
    )


def _timestamp(text: str) -> Timestamp | None:
    """Read ISO 8601; a time without a zone is UTC.  None where a foreign writer left something else."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(time if time.tzinfo else time.replace(tzinfo=UTC))
    return stamp
