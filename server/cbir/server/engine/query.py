"""Queries and answers as the engine knows them: frozen values, no protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import Gallery, GalleryImage
from cbir.core.images import Box, Crop
from cbir.core.vote import Fusion, Ranking

__all__ = [
    "Embedding",
    "EngineInfo",
    "EngineQuery",
    "EngineResult",
    "Filter",
    "Hit",
    "ImageBytes",
    "MemberInfo",
    "Source",
    "StoredImage",
    "Text",
    "Timings",
    "Vote",
]


@dataclass(frozen=True)
class ImageBytes:
    """The query is an image file."""

    data: bytes = field(repr=False)


@dataclass(frozen=True)
class StoredImage:
    """The query is an image of the gallery."""

    image_id: str


@dataclass(frozen=True)
class Embedding:
    """The query was embedded elsewhere.

    Attributes:
        vectors: (raw_dim,) by member, before projection; members that are left out do not vote.
    """

    vectors: Mapping[str, NDArray[np.float32]] = field(repr=False)


@dataclass(frozen=True)
class Text:
    """The query is words."""

    text: str


Source = ImageBytes | StoredImage | Embedding | Text


@dataclass(frozen=True)
class Filter:
    """A condition on the hits; all its parts must hold.

    Attributes:
        labels: The hit carries one of these, where there are any.  Examples need not.
        exclude_labels: The hit carries none of these.
        metadata: For each column, the values of which the hit carries one.
    """

    labels: tuple[str, ...] = ()
    exclude_labels: tuple[str, ...] = ()
    metadata: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.labels or self.exclude_labels or self.metadata)


@dataclass(frozen=True)
class EngineQuery:
    """One query.

    Attributes:
        source: What to look for; None where positive examples alone say it.
        positive_ids: Gallery images that the query moves towards.  They are no hits, but vote for their labels.
        negative_ids: Gallery images that the query moves away from.  They are no hits and have no vote.
        limit: Most hits.
        min_score: Hits with a lower score are left out.
        weights: By member, members that are left out weigh 0; None: the index's own.
        exclude_query: The query image itself is no hit, be it by its bytes or as a near duplicate
            (:mod:`cbir.core.search.near_duplicates`); likewise each positive example, where they alone are the query.
        crop: How a query image is cut; None: as the gallery was.
    """

    source: Source | None = None
    positive_ids: tuple[str, ...] = ()
    negative_ids: tuple[str, ...] = ()
    limit: int = 10
    min_score: float | None = None
    fusion: Fusion = Fusion.WEIGHTED_VOTE
    weights: Mapping[str, float] | None = None
    filter: Filter = field(default_factory=Filter)
    exclude_query: bool = False
    crop: Crop | None = None

    @property
    def image_bytes(self) -> int:
        """Size of the query image in bytes, 0 where it is none."""
        return len(self.source.data) if isinstance(self.source, ImageBytes) else 0


@dataclass(frozen=True)
class Vote:
    """What one member says about one hit.

    Attributes:
        rank: The member's own rank of the hit among the candidates that were scored, from 1; 0 where the query is
            words, which the member does not understand.
        similarity: Cosine after projection, -1..1; of words and image, before projection.
        contribution: What the member added to the hit's fused score.
    """

    member: str
    rank: int
    similarity: float
    contribution: float


@dataclass(frozen=True)
class Hit:
    """One image that is like the query.

    Attributes:
        score: 0..1, falling with the rank; not calibrated where the query is words.
        fused_score: The sum of the votes' contributions and ``label_contribution``.
    """

    image: GalleryImage
    score: float
    fused_score: float
    label_contribution: float
    votes: tuple[Vote, ...]


@dataclass(frozen=True)
class Timings:
    """Seconds by stage.

    Attributes:
        decode: Decoding, cropping and resizing this query.
        queue: Waiting for a decoder and for the engine.
        embed: The forward passes of the batch that the query was in.
        search: Projecting that batch and ranking the gallery for it, fusion included.
        fuse: Putting the answers of that batch together.
    """

    decode: float = 0.0
    queue: float = 0.0
    embed: float = 0.0
    search: float = 0.0
    fuse: float = 0.0


@dataclass(frozen=True)
class EngineResult:
    """The answer to one query.

    The hits are held as the arrays they were ranked in: whoever writes them to the wire needs no object for each vote.

    Attributes:
        ranking: The hits' rows, scores and votes, and the likeliest classes.
        members: The names of the members, in the order of the ranking's columns.
        gallery: What the rows stand for.
        crop: The part of the query image that was embedded, in pixels of the upright image; None: it was no image.
        version: The index version that answered.
    """

    ranking: Ranking = field(repr=False)
    members: tuple[str, ...]
    gallery: Gallery = field(repr=False)
    crop: Box | None
    version: str
    timings: Timings

    @property
    def labels(self) -> tuple[tuple[str, float], ...]:
        """The likeliest classes and their probabilities, best first."""
        return tuple(self.ranking.labels)

    @cached_property
    def hits(self) -> tuple[Hit, ...]:
        """The hits as objects, best first."""
        ranking = self.ranking
        columns = zip(
            ranking.rows.tolist(), ranking.scores.tolist(), ranking.fused.tolist(),
            ranking.label_contributions.tolist(), ranking.ranks.tolist(), ranking.similarities.tolist(),
            ranking.contributions.tolist(), strict=True,
        )  # fmt: skip
        return tuple(
            Hit(
                self.gallery[row], score, fused, label,
                tuple(map(Vote, self.members, ranks, similarities, contributions)),
            )
            for row, score, fused, label, ranks, similarities, contributions in columns
        )  # fmt: skip


@dataclass(frozen=True)
class MemberInfo:
    """One member of the loaded ensemble.

    Attributes:
        weight: Of its vote; those of all members add up to 1.
        embedding_dim: Length of its embedding before projection.
        dim: Length after projection.
        runtime: What computes its embedding, such as ``openvino`` or ``torch-cuda``.
        text: It has a text tower: it can be asked in words.
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
    text: bool = False


@dataclass(frozen=True)
class EngineInfo:
    """The loaded index.

    Attributes:
        created: When the version was published, ISO 8601.
        labels: Number of distinct labels.
        index: How the gallery is searched, such as ``exact``.
    """

    version: str
    created: str
    images: int
    labels: int
    ensemble: str
    members: tuple[MemberInfo, ...]
    crop: Crop
    index: str
