"""Results: typed, frozen values without protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from cbir.client._queries import Crop

__all__ = [
    "Box",
    "Hit",
    "ImageBytes",
    "IndexInfo",
    "LabelPrediction",
    "MemberInfo",
    "Reloaded",
    "Timings",
    "Vote",
]


@dataclass(frozen=True, slots=True)
class Vote:
    """The part of one member in the score of one hit.

    Attributes:
        member: The member's name.
        rank: The member's own rank of the hit among the scored candidates, from 1; 0 in text queries if the member has
            no text tower.
        similarity: Its cosine similarity of query and hit, -1..1; that of text and image is seldom above 0.4.
        contribution: What it added to the hit's ``fused_score``.
    """

    member: str
    rank: int
    similarity: float
    contribution: float


@dataclass(frozen=True, slots=True)
class Hit:
    """One image of the gallery in a result.

    Attributes:
        image_id: The image's id.
        uri: The image's id again; where the server was started with ``--expose-paths``, the place where the indexer
            found the image.
        label: Its label, if it has one.
        score: How likely the hit is relevant, 0..1; descending with the rank. In text queries it is not calibrated: it
            is ``fused_score``, or 0 if that is negative.
        fused_score: The sum of the votes' contributions and ``label_contribution``: the score before calibration.
        label_contribution: What the vote of the neighbours' labels added.
        votes: One vote for each member, in the ensemble's order.
        metadata: The image's metadata columns.
        near_duplicate: It is the query image or a near duplicate of it; told only where ``mark_near_duplicates`` asks.
    """

    image_id: str
    uri: str
    label: str | None
    score: float
    fused_score: float
    label_contribution: float
    votes: tuple[Vote, ...]
    metadata: Mapping[str, str]
    near_duplicate: bool = False


@dataclass(frozen=True, slots=True)
class LabelPrediction:
    """A class that the query may belong to.

    Attributes:
        label: The class.
        probability: Its probability, 0..1.
    """

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels of the upright image; the right and bottom edges are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.bottom - self.top


@dataclass(frozen=True, slots=True)
class Timings:
    """Time that the server spent on each stage, in seconds.

    Attributes:
        decode: Decoding and cropping the image.
        queue: Waiting for the engine.
        embed: The members' forward passes.
        search: Projecting the query, and scoring and ranking the gallery.
        fuse: Assembling the answer: hits, explanations.
    """

    decode: float
    queue: float
    embed: float
    search: float
    fuse: float

    @property
    def total(self) -> float:
        """The sum of the stages in seconds."""
        return self.decode + self.queue + self.embed + self.search + self.fuse


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """One member of the ensemble.

    Attributes:
        name: The member's name.
        backend: The library that runs the model.
        model: The model's name in that library.
        fingerprint: Hash of weights and preprocessing.
        weight: The weight of its vote.
        embedding_dim: The length of the embedding before projection.
        dim: The length after projection.
        metric: How it is projected: ``cosine`` or ``glrt``.
        runtime: What computes the embedding, such as ``openvino`` or ``torch-cuda``.
        text: Whether the member has a text tower, so that it takes text queries.
        precision: What the model computes with: ``f32``, ``bf16``, ``f16`` or ``int8``; empty from an older server.
        threads: Of one forward pass; 0 where the server does not say.
    """

    name: str
    backend: str
    model: str
    fingerprint: str
    weight: float
    embedding_dim: int
    dim: int
    metric: str
    runtime: str
    text: bool
    precision: str = ""
    threads: int = 0


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """The index that a server has loaded, and the server's limits.

    Attributes:
        version: The version that answers now.
        created_at: When it was published (UTC); ``None`` if the server does not say.
        images: The number of images.
        labels: The number of distinct labels.
        ensemble: The ensemble's name.
        members: The members, in the ensemble's order.
        crop: How the gallery was cropped; ``None`` if it is a way that this client does not know.
        max_limit: The largest ``limit`` that a query may ask for.
        max_image_bytes: Size in bytes of the largest image file that a query may send.
        server_version: The server's software version.
        index: How the gallery is searched, such as ``exact`` or ``faiss:HNSW32``.
        query_side: Of a query image whose shorter side is longer than this in pixels, the server uses no more than of
            one that was shrunk to it; 0 if it does not say.
    """

    version: str
    created_at: datetime | None
    images: int
    labels: int
    ensemble: str
    members: tuple[MemberInfo, ...]
    crop: Crop | None
    max_limit: int
    max_image_bytes: int
    server_version: str
    index: str
    query_side: int = 0


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A server's answer to a reload.

    Attributes:
        previous_version: The version that answered before.
        version: The version that answers now.
        changed: Whether another version was loaded.
    """

    previous_version: str
    version: str
    changed: bool


class ImageBytes(bytes):
    """The bytes of an image file, with the media type that the server gave.

    Attributes:
        media_type: Such as ``image/jpeg``; empty if the server did not say.
    """

    media_type: str

    def __new__(cls, data: bytes = b"", media_type: str = "") -> ImageBytes:
        self = super().__new__(cls, data)
        self.media_type = media_type
        return self

    def __repr__(self) -> str:
        return f"<ImageBytes {self.media_type or 'of unknown type'}, {len(self):,} bytes>"

    # bytes.__str__ would print the whole file.
    __str__ = __repr__
