"""The second stage of a query: a batch is embedded, projected and ranked.  No network protocol, no event loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from cbir.core.ensemble import Embedder, embed_all
from cbir.core.errors import CbirError
from cbir.core.search import Appearance, Searcher, confirmed
from cbir.core.vote import Ranking, SearchSpec
from cbir.server.engine.feedback import apply_feedback
from cbir.server.engine.preparation import PreparedQuery
from cbir.server.engine.query import EngineResult, Timings
from cbir.server.engine.text_search import TextSearch

__all__ = ["Answering"]

Floats = NDArray[np.float32]


class Answering:
    """Answers batches of prepared queries against one index version.  For one thread at a time.

    Args:
        embedders: By name, one for each member of the retriever.
        text_search: Search by text; None where the index has none.
        appearance: Compares images when looking for near duplicates.
        version: Name of the index version.
    """

    def __init__(
        self,
        retriever: Searcher,
        embedders: Mapping[str, Embedder],
        text_search: TextSearch | None,
        appearance: Appearance,
        version: str,
    ) -> None:
        self._retriever, self._embedders, self._text_search = retriever, embedders, text_search
        self._appearance, self._version = appearance, version
        self._forms = {name: (e.size, e.interpolation) for name, e in embedders.items()}

    def __call__(
        self, batch: Sequence[PreparedQuery], waited: Sequence[float] | None = None
    ) -> list[EngineResult | CbirError]:
        """See :meth:`cbir.server.engine.engine.Engine.answer`."""
        refused: dict[int, CbirError] = {}
        vectors = np.zeros((len(batch), sum(self._retriever.dims)), np.float32)
        begun = perf_counter()
        images = [i for i, query in enumerate(batch) if query.inputs]
        raw = self._embed([batch[i] for i in images])
        points = self._text_search.points(batch, raw) if self._text_search else None
        embedded = perf_counter()

        def project_images(places: list[int]) -> None:
            picked = np.searchsorted(images, places)
            vectors[places] = self._retriever.project({name: values[picked] for name, values in raw.items()})

        def project_embeddings(places: list[int]) -> None:
            names = batch[places[0]].vectors
            vectors[places] = self._retriever.project(
                {name: np.stack([batch[i].vectors[name] for i in places]) for name in names}
            )

        _refuse_singly(images, project_images, refused)
        for places in _alike(batch):
            _refuse_singly(places, project_embeddings, refused)
        stored = self._recall(batch, vectors)
        near = [self._near_duplicates(query, vectors[i]) for i, query in enumerate(batch)]
        specs = [_without(query, found) for query, found in zip(batch, near, strict=True)]
        self._move(batch, vectors, stored, refused)

        rankings: dict[int, Ranking] = {}

        def rank(places: list[int]) -> None:
            found = self._retriever.search(vectors[places], self._specs([specs[i] for i in places], points, places))
            rankings.update(zip(places, found, strict=True))

        def rank_by_words(places: list[int]) -> None:
            assert self._text_search is not None
            assert points is not None
            for i in places:
                rankings[i] = self._text_search.search(points[i], self._weights(batch[i]), batch[i])

        _refuse_singly([i for i in range(len(batch)) if i not in refused and not batch[i].text], rank, refused)
        _refuse_singly([i for i in range(len(batch)) if batch[i].text], rank_by_words, refused)
        searched = perf_counter()
        retriever = self._retriever
        answers: list[EngineResult | CbirError] = []
        for i, query in enumerate(batch):
            if i in refused:
                answers.append(refused[i])
                continue
            timings = Timings(
                decode=query.seconds,
                queue=waited[i] if waited else 0.0,
                embed=embedded - begun if query.inputs or query.text else 0.0,
                search=searched - embedded,
                fuse=perf_counter() - searched,
            )
            marked = frozenset() if query.copies is None else near[i].union(query.copies)
            version = self._version
            answers.append(
                EngineResult(rankings[i], retriever.members, retriever.gallery, query.crop, version, timings, marked)
            )
        return answers

    def _embed(self, queries: Sequence[PreparedQuery]) -> dict[str, Floats]:
        """The members' embeddings of image queries: (B, raw_dim) by member; empty without queries."""
        if not queries:
            return {}
        batches = {form: np.stack([q.inputs[form] for q in queries]) for form in dict.fromkeys(self._forms.values())}
        return embed_all(self._embedders, batches)

    def _weights(self, query: PreparedQuery) -> Floats:
        return self._retriever.weights if query.spec.weights is None else query.spec.weights

    def _specs(self, specs: Sequence[SearchSpec], points: Floats | None, places: list[int]) -> list[SearchSpec]:
        """The specs, completed by the label priors that the members with text towers give."""
        if self._text_search is None or points is None:
            return list(specs)
        weights = [self._retriever.weights if spec.weights is None else spec.weights for spec in specs]
        priors = self._text_search.label_priors(points[places], np.stack(weights))
        return [replace(spec, label_prior=prior) for spec, prior in zip(specs, priors, strict=True)]

    def _recall(self, batch: Sequence[PreparedQuery], vectors: Floats) -> dict[int, Floats]:
        """Set the vectors of queries by stored image.

        Returns:
            Gallery row -> its stored vector (D,), for these images and for all examples.
        """
        rows = list(dict.fromkeys(r for q in batch for r in (q.row, *q.positives, *q.negatives) if r is not None))
        if not rows:
            return {}
        stored = dict(zip(rows, self._retriever.vectors_of(rows), strict=True))
        for i, query in enumerate(batch):
            if query.row is not None:
                vectors[i] = stored[query.row]
        return stored

    def _near_duplicates(self, query: PreparedQuery, vector: Floats) -> frozenset[int]:
        """Rows of those of the suspects that the members confirm as near duplicates."""
        found: set[int] = set()
        for anchor, (rows, bits_off, likeness) in query.suspects.items():
            if len(rows):
                look = self._appearance
                known = look.vectors(vector[None]) if anchor is None else look.of_rows(np.array([anchor]))
                found.update(rows[confirmed(bits_off, look.of_rows(rows) @ known[0], likeness)].tolist())
        return frozenset(found)

    def _move(
        self,
        batch: Sequence[PreparedQuery],
        vectors: Floats,
        stored: Mapping[int, Floats],
        refused: dict[int, CbirError],
    ) -> None:
        """Move the vectors of queries that have examples (relevance feedback)."""
        for i, query in enumerate(batch):
            if i in refused or not (query.positives or query.negatives):
                continue
            known = query.row is not None or bool(query.inputs) or bool(query.vectors)
            positives, negatives = (
                np.stack([stored[row] for row in side]) if side else np.zeros((0, vectors.shape[1]), np.float32)
                for side in (query.positives, query.negatives)
            )
            try:
                vectors[i] = apply_feedback(vectors[i] if known else None, positives, negatives, self._retriever.dims)
            except CbirError as error:
                refused[i] = error


def _without(query: PreparedQuery, near: frozenset[int]) -> SearchSpec:
    """The query's spec, which excludes its near duplicates too, unless they are only to be marked."""
    if not query.suspects or query.copies is not None:
        return query.spec
    return replace(query.spec, exclude_rows=tuple(sorted(near.union(query.spec.exclude_rows))))


def _alike(batch: Sequence[PreparedQuery]) -> list[list[int]]:
    """Places in the batch of the queries by embedding, grouped so that the vectors of a group can be stacked."""
    groups: dict[frozenset[tuple[str, int]], list[int]] = {}
    for i, query in enumerate(batch):
        if query.vectors:
            groups.setdefault(frozenset((name, len(v)) for name, v in query.vectors.items()), []).append(i)
    return list(groups.values())


def _refuse_singly(places: list[int], act: Callable[[list[int]], None], refused: dict[int, CbirError]) -> None:
    """Call ``act`` for a whole group; if it raises, for each place alone, so that only those at fault are refused."""
    if not places:
        return
    try:
        act(places)
    except CbirError as error:
        if len(places) == 1:
            refused[places[0]] = error
            return
        for place in places:
            _refuse_singly([place], act, refused)
