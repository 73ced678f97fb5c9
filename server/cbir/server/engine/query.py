"""Queries and answers of the engine: frozen values that know no network protocol."""

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
    """A query by image: the bytes of an image file."""

    data: bytes = field(repr=False)


@dataclass(frozen=True)
class StoredImage:
    """A query by the id of an image in the gallery."""

    image_id: str


@dataclass(frozen=True)
class Embedding:
    """A query by embeddings that the caller has computed.

    Attributes:
        vectors: (raw_dim,) by member, before projection; members that are left out do not vote.
    """

    vectors: Mapping[str, NDArray[np.float32]] = field(repr=False)


@dataclass(frozen=True)
class Text:
    """A query by text."""

    text: str


Source = ImageBytes | StoredImage | Embedding | Text


@dataclass(frozen=True)
class Filter:
    """A condition on the hits; all its parts must hold.

    Attributes:
        labels: A hit must have one of these labels; empty for any.  It applies to hits only, not to examples.
        exclude_labels: A hit must have none of these labels.
        metadata: Column -> values; a hit must have one of the values in every column named.
    """

    labels: tuple[str, ...] = ()
    exclude_labels: tuple[str, ...] = ()
    metadata: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.labels or self.exclude_labels or self.metadata)


_ANYTHING = Filter()


@dataclass(frozen=True)
class EngineQuery:
    """One query.

    Attributes:
        source: What to look for; None if there are positive examples only.
        positive_ids: Gallery images that the query moves towards.  They are no hits, but take part in the vote of
            labels.
        negative_ids: Gallery images that the query moves away from.  They are no hits and take no part in the vote.
        limit: Most hits.
        min_score: Hits with a lower score are left out.
        weights: Weights by member, 0 for members that are left out; None for the weights of the index.
        exclude_query: Leave out the query image itself, that is hits with the same bytes and near duplicates of it
            (:mod:`cbir.core.search.near_duplicates`); and those of each positive example if there are only examples.
        crop: How the query image is cropped; None: as the gallery was.
        mark_near_duplicates: Mark what ``exclude_query`` would leave out; without effect beside it.
    """

    source: Source | None = None
    positive_ids: tuple[str, ...] = ()
    negative_ids: tuple[str, ...] = ()
    limit: int = 10
    min_score: float | None = None
    fusion: Fusion = Fusion.WEIGHTED_VOTE
    weights: Mapping[str, float] | None = None
    filter: Filter = _ANYTHING
    exclude_query: bool = False
    crop: Crop | None = None
    mark_near_duplicates: bool = False

    @property
    def seeks_near_duplicates(self) -> bool:
        """Whether the near duplicates of the query must be known."""
        return self.exclude_query or self.mark_near_duplicates

    @property
    def image_bytes(self) -> int:
        """Size of the query image in bytes; 0 if the query is no image."""
        return len(self.source.data) if isinstance(self.source, ImageBytes) else 0


@dataclass(frozen=True)
class Vote:
    """The part of one member in the score of one hit.

    Attributes:
        rank: The member's own rank of the hit among the candidates that were scored, from 1; 0 in text queries for
            members without a text tower.
        similarity: Cosine similarity after projection, -1..1; in text queries that of text and image, before
            projection.
        contribution: What the member adds to the hit's fused score.
    """

    member: str
    rank: int
    similarity: float
    contribution: float


@dataclass(frozen=True)
class Hit:
    """One image of the result.

    Attributes:
        score: 0..1, descending with the rank; not calibrated for text queries.
        fused_score: The sum of the votes' contributions and ``label_contribution``.
    """

    image: GalleryImage
    score: float
    fused_score: float
    label_contribution: float
    votes: tuple[Vote, ...]


@dataclass(frozen=True)
class Timings:
    """Seconds that each stage took.

    Attributes:
        decode: Decoding, cropping and resizing the image of this query.
        queue: Waiting for a decoder and for the engine.
        embed: The forward passes of the batch that the query was in.
        search: Projecting that batch, and searching and ranking the gallery for it.
        fuse: Assembling the results of that batch.
    """

    decode: float = 0.0
    queue: float = 0.0
    embed: float = 0.0
    search: float = 0.0
    fuse: float = 0.0


@dataclass(frozen=True)
class EngineResult:
    """The answer to one query.

    The hits are kept as the arrays of the ranking, so that serialising them does not need an object for every vote.

    Attributes:
        ranking: Rows, scores and votes of the hits, and the most likely classes.
        members: Names of the members, in the order of the ranking's columns.
        gallery: The gallery that the rows refer to.
        crop: The part of the query image that was embedded, in pixels of the upright image; None without an image.
        version: The index version that answered.
        near_duplicates: Rows that are the query image or near duplicates of it; empty unless they are to be marked.
    """

    ranking: Ranking = field(repr=False)
    members: tuple[str, ...]
    gallery: Gallery = field(repr=False)
    crop: Box | None
    version: str
    timings: Timings
    near_duplicates: frozenset[int] = frozenset()

    @property
    def labels(self) -> tuple[tuple[str, float], ...]:
        """The most likely classes and their probabilities, best first."""
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
        weight: Weight of its vote; the weights of all members add up to 1.
        embedding_dim: Length of its embedding before projection.
        dim: Length after projection.
        runtime: What computes its embedding, such as ``openvino`` or ``torch-cuda``.
        precision: What its model computes with: ``f32``, ``bf16``, ``f16`` or ``int8``.
        text: Whether it has a text tower, so that it takes text queries.
        threads: Of one forward pass; 0 where the runtime does not say.
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
    precision: str
    text: bool = False
    threads: int = 0


@dataclass(frozen=True)
class EngineInfo:
    """The loaded index.

    Attributes:
        created: When the version was published, ISO 8601.
        labels: Number of distinct labels.
        index: How the gallery is searched, such as ``exact``.
        query_side: Of a query image whose shorter side is longer than this in pixels, no more is used than of one that
            was shrunk to it.
    """

    version: str
    created: str
    images: int
    labels: int
    ensemble: str
    members: tuple[MemberInfo, ...]
    crop: Crop
    index: str
    query_side: int
