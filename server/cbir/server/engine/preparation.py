"""The first stage of a query: its options are checked, its image is decoded, cropped and resized.  Thread-safe."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import Gallery
from cbir.core.errors import QueryError
from cbir.core.images import Box, Crop, Decoder, InProcessDecoder, find_content, prepare
from cbir.core.vote import Conditions, SearchSpec
from cbir.server.engine.query import Embedding, EngineQuery, Filter, ImageBytes, StoredImage, Text
from cbir.server.engine.suspects import SuspectFinder, Suspects
from cbir.server.limits import Limits

__all__ = ["InputForm", "Preparation", "PreparedQuery"]

#: Side in pixels and resampling filter of a square model input; members with the same form share one resized image.
InputForm = tuple[int, str]


@dataclass(frozen=True)
class PreparedQuery:
    """A query after the first stage, ready for the models and the search.

    Attributes:
        inputs: (S, S, 3) uint8 RGB by input form; empty unless the query is an image.
        vectors: (raw_dim,) float32 by member; empty unless the query is an embedding.
        text: The text; empty unless it is a text query.
        row: The gallery row, if the query is a stored image.
        positives: Gallery rows of the positive examples, each once.
        negatives: Gallery rows of the negative examples, each once.
        suspects: Gallery rows whose perceptual hashes are close to that of the query, and what their pixels tell; they
            are excluded from the hits if the second stage confirms them as near duplicates.  The key is the gallery row
            that they are close to, or None for the query image.
        copies: Gallery rows with the bytes of the query, where near duplicates are marked and not excluded; else None.
        crop: The part of the query image that is embedded, in pixels of the upright image.
        seconds: Duration of the first stage.
    """

    spec: SearchSpec
    inputs: Mapping[InputForm, NDArray[np.uint8]]
    vectors: Mapping[str, NDArray[np.float32]]
    text: str
    row: int | None
    positives: tuple[int, ...]
    negatives: tuple[int, ...]
    suspects: Mapping[int | None, Suspects]
    crop: Box | None
    seconds: float
    copies: tuple[int, ...] | None = None


class Preparation:
    """Prepares queries for one gallery and one ensemble.

    Args:
        words: Names of the members that take text queries.
        decoder: Where images are decoded; None: on the thread that prepares the query.
    """

    def __init__(
        self,
        gallery: Gallery,
        members: tuple[str, ...],
        forms: Iterable[InputForm],
        crop: Crop,
        limits: Limits,
        words: tuple[str, ...] = (),
        decoder: Decoder | None = None,
    ) -> None:
        self._decoder = decoder or InProcessDecoder()
        self._gallery, self._members, self._crop, self._limits, self._words = gallery, members, crop, limits, words
        self._forms = tuple(dict.fromkeys(forms))
        #: The bounds on decoding: those of the indexer for the same models, so that equal bytes give equal pixels.
        self.decode_limits = limits.decode.for_inputs(side for side, _ in self._forms)
        self._suspects = SuspectFinder(gallery, self._decoder, self.decode_limits)

    @property
    def query_side(self) -> int:
        """See :attr:`.query.EngineInfo.query_side`; never less than the input of any member."""
        return self.decode_limits.draft_side or 0

    @staticmethod
    def is_light(query: EngineQuery) -> bool:
        """Whether preparing the query takes only microseconds, so that another thread would not pay."""
        return not isinstance(query.source, ImageBytes) and not query.filter and not query.seeks_near_duplicates

    def __call__(self, query: EngineQuery, go_on: Callable[[], bool] | None = None) -> PreparedQuery:
        """Check and prepare a query.

        Args:
            go_on: Says whether a caller still waits for the answer; called while an image is decoded.

        Raises:
            QueryError: An option is invalid; the reason says which.
            UnknownImageError: An id is not in the gallery.
            ImageError: The bytes are not a usable image.
        """
        begun = perf_counter()
        source = query.source
        self._check(query)
        row = self._gallery.row(source.image_id) if isinstance(source, StoredImage) else None
        # dict.fromkeys: an example that is named twice counts once.
        positives = tuple(self._gallery.row(name) for name in dict.fromkeys(query.positive_ids))
        negatives = tuple(self._gallery.row(name) for name in dict.fromkeys(query.negative_ids))
        same = tuple(self._same_bytes(query, row, positives)) if query.seeks_near_duplicates else ()
        spec = SearchSpec(
            limit=query.limit,
            weights=None if query.weights is None else self._weights(query.weights),
            fusion=query.fusion,
            mask=self._mask(query, positives),
            conditions=self._conditions(query.filter),
            exclude_rows=tuple(dict.fromkeys((*(same if query.exclude_query else ()), *negatives))),
            min_score=query.min_score,
        )
        inputs, crop, alike = (
            self._inputs(source.data, query, go_on) if isinstance(source, ImageBytes) else ({}, None, None)
        )
        vectors = self._vectors(source) if isinstance(source, Embedding) else {}
        suspects: dict[int | None, Suspects] = {} if alike is None else {None: alike}
        if query.seeks_near_duplicates and alike is None:
            suspects = {anchor: self._suspects.of_row(anchor) for anchor in _anchors(query, row, positives)}
        copies = None if query.exclude_query or not query.mark_near_duplicates else same
        text = source.text if isinstance(source, Text) else ""
        return PreparedQuery(
            spec, inputs, vectors, text, row, positives, negatives, suspects, crop, perf_counter() - begun, copies
        )

    def _check(self, query: EngineQuery) -> None:
        if isinstance(query.source, Text):
            self._check_text(query.source.text, bool(query.positive_ids or query.negative_ids))
        if query.source is None and not query.positive_ids:
            raise QueryError(
                "the query is empty: give an image, an image_id, an embedding or positive_ids", reason="EMPTY_QUERY"
            )
        if not 1 <= query.limit <= self._limits.max_limit:
            raise QueryError(
                f"limit is {query.limit}; it must be from 1 to {self._limits.max_limit}",
                reason="BAD_LIMIT",
                limit=query.limit,
                max_limit=self._limits.max_limit,
            )
        if query.min_score is not None and not 0 <= query.min_score <= 1:
            raise QueryError(f"min_score is {query.min_score}; it must be from 0 to 1", reason="BAD_MIN_SCORE")
        examples = len(query.positive_ids) + len(query.negative_ids)
        if examples > self._limits.max_examples:
            raise QueryError(
                f"the query has {examples} positive and negative ids; at most {self._limits.max_examples} are allowed: "
                "leave some out",
                reason="TOO_MANY_EXAMPLES",
                max_examples=self._limits.max_examples,
            )
        if examples and (both := set(query.positive_ids) & set(query.negative_ids)):
            raise QueryError(
                f"image {min(both)!r} is named as a positive and as a negative example: leave it out of one of them",
                reason="CONTRADICTORY_EXAMPLES",
                image_id=min(both),
            )

    def _check_text(self, text: str, has_examples: bool) -> None:
        if not self._words:
            raise QueryError(
                f"none of this index's members ({', '.join(self._members)}) can be asked in words: index with an "
                "ensemble that has a member with a text tower (backend open_clip), or send an image, an image_id or an "
                "embedding",
                reason="TEXT_UNSUPPORTED",
            )
        if not text.strip():
            raise QueryError("the text of the query is empty: write what to look for", reason="EMPTY_TEXT")
        if len(text) > self._limits.max_text:
            raise QueryError(
                f"the text of the query has {len(text):,} characters; at most {self._limits.max_text:,} are allowed",
                reason="TEXT_TOO_LONG",
                max_text=self._limits.max_text,
            )
        if has_examples:
            raise QueryError(
                "words cannot be combined with positive_ids or negative_ids: search by words, then by the image_id of "
                "a hit with examples",
                reason="TEXT_WITH_EXAMPLES",
            )

    def _weights(self, given: Mapping[str, float]) -> NDArray[np.float32]:
        for name, weight in given.items():
            if name not in self._members:
                raise QueryError(
                    f"weights name the member {name!r}, which the ensemble does not have; members are "
                    f"{', '.join(self._members)}",
                    reason="UNKNOWN_MEMBER",
                    member=name,
                    option="weights",
                )
            if not math.isfinite(weight) or weight < 0:
                raise QueryError(
                    f"the weight of member {name!r} is {weight}; it must be a finite number of at least 0",
                    reason="BAD_WEIGHT",
                    member=name,
                )
        weights = np.array([given.get(name, 0.0) for name in self._members], np.float32)
        if not weights.any():
            raise QueryError(f"all weights are 0: raise that of one of {', '.join(self._members)}", reason="BAD_WEIGHT")
        return weights

    def _mask(self, query: EngineQuery, positives: tuple[int, ...]) -> NDArray[np.bool_] | None:
        condition = query.filter
        for column, values in condition.metadata.items():
            if not values:
                raise QueryError(
                    f"the filter on the metadata column {column!r} lists no value: list those that are wanted",
                    reason="BAD_FILTER",
                    column=column,
                )
        mask = self._gallery.mask(condition.labels, condition.exclude_labels, condition.metadata)
        if positives:
            # Positive examples are no hits, as the caller knows them already.  They are masked rather than excluded:
            # excluded images have no part in the vote of the neighbours' labels, in which positive examples should take
            # part.
            mask = np.ones(len(self._gallery), bool) if mask is None else mask
            mask[list(positives)] = False
        return mask

    def _conditions(self, condition: Filter) -> Conditions | None:
        if not (condition.labels or condition.exclude_labels or condition.metadata):
            return None
        return Conditions(
            tuple(self._gallery.codes_of(condition.labels)) if condition.labels else None,
            tuple(self._gallery.codes_of(condition.exclude_labels)),
            {column: tuple(values) for column, values in condition.metadata.items()},
        )

    def _same_bytes(self, query: EngineQuery, row: int | None, positives: tuple[int, ...]) -> list[int]:
        if isinstance(query.source, ImageBytes):
            return self._gallery.rows_with_sha256(hashlib.sha256(query.source.data).hexdigest())
        anchors = _anchors(query, row, positives)
        return [twin for anchor in anchors for twin in self._gallery.rows_with_sha256(self._gallery.sha256(anchor))]

    def _inputs(
        self, data: bytes, query: EngineQuery, go_on: Callable[[], bool] | None
    ) -> tuple[dict[InputForm, NDArray[np.uint8]], Box, Suspects | None]:
        image = self._decoder.decode(data, self.decode_limits, go_on)
        box = find_content(image.pixels, self._crop if query.crop is None else query.crop)
        inputs = {form: prepare(image.pixels, box, *form) for form in self._forms}
        suspects = self._suspects.of_image(image.pixels, box) if query.seeks_near_duplicates else None
        # Large JPEGs are decoded at a reduced scale, but the box is reported in pixels of the original.
        height, width = image.pixels.shape[:2]
        told = box.scaled(image.width / width, image.height / height)
        box = Box(told.left, told.top, min(told.right, image.width), min(told.bottom, image.height))
        return inputs, box, suspects

    @staticmethod
    def _vectors(source: Embedding) -> dict[str, NDArray[np.float32]]:
        if not source.vectors:
            raise QueryError("the embedding names no member: give at least one vector", reason="EMPTY_QUERY")
        vectors = {name: np.asarray(vector, np.float32) for name, vector in source.vectors.items()}
        for name, vector in vectors.items():
            if vector.ndim != 1:
                raise QueryError(
                    f"the embedding of member {name!r} has {vector.ndim} dimensions; it must be one row of numbers",
                    reason="BAD_EMBEDDING",
                    member=name,
                )
        return vectors


def _anchors(query: EngineQuery, row: int | None, positives: tuple[int, ...]) -> tuple[int, ...]:
    """Gallery images that are the query: a stored image, or the positive examples if there is nothing else."""
    if row is not None:
        return (row,)
    return positives if query.source is None else ()
