"""What comes back: typed, frozen, free of protobuf."""

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
    "SearchResult",
    "Timings",
    "Vote",
]


@dataclass(frozen=True, slots=True)
class Vote:
    """What one member says about one hit.

    Attributes:
        member: The member's name.
        rank: The member's own rank of the hit among the scored candidates, from 1; 0 where the query is words, which
            the member does not understand.
        similarity: Its cosine similarity between query and hit, -1..1; between words and image it is seldom above 0.4.
        contribution: What it added to the hit's ``fused_score``.
    """

    member: str
    rank: int
    similarity: float
    contribution: float


@dataclass(frozen=True, slots=True)
class Hit:
    """One image of the gallery that is like the query.

    Attributes:
        image_id: The image's id.
        uri: Where the indexer found the image.
        label: Its label, if it has one.
        score: How likely or how strongly the hit is relevant, 0..1; falls with the rank. Of queries in words it is not
            calibrated: it is ``fused_score``, and 0 where that is negative.
        fused_score: The sum of the votes' contributions and ``label_contribution``: the score before calibration.
        label_contribution: What the vote of the neighbours' labels added.
        votes: One vote a member, in the ensemble's order.
        metadata: The image's further columns.
    """

    image_id: str
    uri: str
    label: str | None
    score: float
    fused_score: float
    label_contribution: float
    votes: tuple[Vote, ...]
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LabelPrediction:
    """A class the query may belong to.

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
    """Where the server's time went, in seconds.

    Attributes:
        decode: Decoding and cropping the image.
        queue: Waiting for the engine.
        embed: The members' forward passes.
        search: Projecting the query, scoring and ranking the gallery.
        fuse: Putting the answer together: hits, explanations.
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
class SearchResult:
    """The answer to one query.

    Attributes:
        hits: The hits, best first.
        labels: The classes the query most likely belongs to, best first; empty when the gallery has no labels.
        crop: The part of the query image that was embedded; ``None`` when the query was no image.
        index_version: The version of the index that answered.
        timings: Where the server's time went.
    """

    hits: tuple[Hit, ...]
    labels: tuple[LabelPrediction, ...]
    crop: Box | None
    index_version: str
    timings: Timings


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """One member of the ensemble.

    Attributes:
        name: The member's name.
        backend: The library that runs the model.
        model: The model's name in that library.
        fingerprint: The identity of weights and preprocessing.
        weight: The weight of its vote.
        embedding_dim: The length of the embedding before projection.
        dim: The length after projection.
        metric: How it is projected: ``cosine`` or ``glrt``.
        runtime: What computes the embedding, such as ``openvino`` or ``torch-cuda``.
        text: The member has a text tower: it can be asked in words.
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


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """The index a server has loaded, and the server's limits.

    Attributes:
        version: The version that answers now.
        created_at: When it was published (UTC), if the server says so.
        images: The number of images.
        labels: The number of distinct labels.
        ensemble: The ensemble's name.
        members: The members, in the ensemble's order.
        crop: The crop of the gallery; ``None`` when the server names one that this client does not know.
        max_limit: The largest ``limit`` a query may ask for.
        max_image_bytes: The largest image file a query may send.
        server_version: The server's software version.
        index: How the gallery is searched, such as ``exact`` or ``faiss:HNSW32``.
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


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a server answers with after it was told to load another index version.

    Attributes:
        previous_version: The version that answered before.
        version: The version that answers now.
        changed: Whether another version was loaded.
    """

    previous_version: str
    version: str
    changed: bool


class ImageBytes(bytes):
    """The bytes of an image file, with the media type the server gave them.

    Attributes:
        media_type: Such as ``image/jpeg``; empty when the server did not say.
    """

    media_type: str

    def __new__(cls, data: bytes = b"", media_type: str = "") -> ImageBytes:
        self = super().__new__(cls, data)
        self.media_type = media_type
        return self

    def __repr__(self) -> str:
        return f"<ImageBytes {self.media_type or 'of unknown type'}, {len(self):,} bytes>"

    # Those of bytes would print the whole file.
    __str__ = __repr__
