"""Answers: from the API's messages to the user's types."""

from __future__ import annotations

from datetime import UTC

from cbir.client._display.pictures import Pictures
from cbir.client._errors import ServerError, TooLarge
from cbir.client._gallery import Facet, Facets, GalleryImage, ImagePage
from cbir.client._requests import CROPS
from cbir.client._results import (
    Box,
    Hit,
    ImageBytes,
    IndexInfo,
    LabelPrediction,
    MemberInfo,
    Reloaded,
    Timings,
    Vote,
)
from cbir.client._search_result import SearchResult
from cbir.v1 import admin_pb2, search_pb2

__all__ = ["NO_PICTURES", "ImageAssembly", "facets", "image_page", "index_info", "reloaded", "search_result"]

NO_PICTURES = Pictures(None)
_CROP_NAMES = {number: crop for crop, number in CROPS.items()}


def search_result(
    wire: search_pb2.SearchResponse, ratio: tuple[float, float] | None = None, pictures: Pictures = NO_PICTURES
) -> SearchResult:
    """Convert an answer.

    Args:
        ratio: Width and height of the query image divided by those of what was sent in its place.
        pictures: What the result shows its hits with.
    """
    return SearchResult(
        hits=tuple(_hit(hit) for hit in wire.hits),
        labels=tuple(LabelPrediction(item.label, item.probability) for item in wire.labels),
        crop=_box(wire.crop, *(ratio or (1.0, 1.0))) if wire.HasField("crop") else None,
        index_version=wire.index_version,
        timings=Timings(
            *(
                getattr(wire.timings, stage).ToNanoseconds() / 1e9
                for stage in ("decode", "queue", "embed", "search", "fuse")
            )
        ),
        _pictures=pictures,
    )


def _box(wire: search_pb2.Box, x: float, y: float) -> Box:
    return Box(round(wire.left * x), round(wire.top * y), round(wire.right * x), round(wire.bottom * y))


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
        near_duplicate=wire.near_duplicate,
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
                precision=member.precision,
                threads=member.threads,
            )
            for member in wire.members
        ),
        crop=_CROP_NAMES.get(wire.crop),
        max_limit=wire.max_limit,
        max_image_bytes=wire.max_image_bytes,
        server_version=wire.server_version,
        index=wire.index,
        query_side=wire.query_side,
    )


def image_page(wire: search_pb2.ListImagesResponse) -> ImagePage:
    """Convert a page of the gallery."""
    return ImagePage(
        images=tuple(
            GalleryImage(
                image_id=image.image_id,
                label=image.label if image.HasField("label") else None,
                width=image.width,
                height=image.height,
                metadata=dict(image.metadata),
            )
            for image in wire.images
        ),
        next_page_token=wire.next_page_token,
        total=wire.total,
        index_version=wire.index_version,
    )


def facets(wire: search_pb2.GetFacetsResponse) -> Facets:
    """Convert what filters can name."""
    return Facets(_facet(wire.labels), {name: _facet(wire.metadata[name]) for name in sorted(wire.metadata)},
                  wire.index_version)  # fmt: skip


def _facet(wire: search_pb2.Facet) -> Facet:
    return Facet({value.value: value.images for value in wire.values}, wire.distinct)


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
