"""The answers of an index to labelled queries: which hits are relevant, and how many relevant images there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import Gallery
from cbir.core.evaluation import Measures, measure
from cbir.core.search import Searcher
from cbir.core.vote import Fusion, SearchSpec
from cbir.indexer.evaluate.query_set import QuerySet

__all__ = ["DEEPEST_RANK", "SHOWN", "Answer", "Judge", "ask", "measured"]

#: Most ranks that MAP@R takes into account.
DEEPEST_RANK = 1000
#: Number of hits that are kept of an answer.
SHOWN = 10
_BATCH = 256


@dataclass(frozen=True)
class Answer:
    """The hits of one query, best first.

    Attributes:
        rows: (K,) gallery rows, K <= 10.
        scores: (K,) in 0..1.
        relevant: (D,) whether the image at each rank has the query's label; D >= K.
        total: R, the number of relevant images in the gallery.
        predicted: The most likely label; None if the gallery has no labels.
    """

    rows: NDArray[np.int64] = field(repr=False)
    scores: NDArray[np.float32] = field(repr=False)
    relevant: NDArray[np.bool_] = field(repr=False)
    total: int
    predicted: str | None


@dataclass(frozen=True)
class Judge:
    """What decides which hits count as relevant, for Q queries.

    Attributes:
        own: Rows with the same bytes as the query; they never count as hits.
        codes: Class number of the query's label in the gallery; negative if the gallery does not have the label.
        totals: R, the number of relevant images, of each query.
    """

    own: tuple[tuple[int, ...], ...]
    codes: tuple[int, ...]
    totals: tuple[int, ...]

    @classmethod
    def of(cls, gallery: Gallery, queries: QuerySet) -> Judge:
        """Look the queries up in a gallery."""
        place = {label: code for code, label in enumerate(gallery.labels)}
        codes = tuple(place.get(label, -2) for label in queries.labels)
        own = tuple(tuple(gallery.rows_with_sha256(digest)) for digest in queries.sha256)
        sizes = np.bincount(gallery.label_codes[gallery.label_codes >= 0], minlength=len(place))
        totals = tuple(
            0 if code < 0 else int(sizes[code] - sum(gallery.label_codes[row] == code for row in rows))
            for code, rows in zip(codes, own, strict=True)
        )
        return cls(own, codes, totals)


def ask(
    retriever: Searcher,
    queries: QuerySet,
    judge: Judge,
    weights: NDArray[np.float32] | None = None,
    fusion: Fusion = Fusion.WEIGHTED_VOTE,
    deepest: int = DEEPEST_RANK,
) -> list[Answer]:
    """Search with every query.

    Args:
        weights: (M,) weights of the members; None for those of the index.
        deepest: Most ranks to retrieve; a query with fewer relevant images gets fewer.  10 is faster, and enough for
            every measure except MAP@R.
    """
    answers = []
    label_codes = retriever.gallery.label_codes
    for start in range(0, len(queries.labels), _BATCH):
        part = slice(start, start + _BATCH)
        priors: list[NDArray[np.float32] | None] = [None] * len(judge.totals[part])
        if queries.names is not None:
            priors = queries.names.priors(part, retriever.weights if weights is None else weights)
        specs = [
            SearchSpec(max(SHOWN, min(deepest, total)), weights, fusion, exclude_rows=rows, label_prior=prior)
            for rows, total, prior in zip(judge.own[part], judge.totals[part], priors, strict=True)
        ]
        rankings = retriever.search(queries.vectors[part], specs)
        for code, total, found in zip(judge.codes[part], judge.totals[part], rankings, strict=True):
            relevant = label_codes[found.rows] == code
            predicted = found.labels[0][0] if found.labels else None
            answers.append(Answer(found.rows[:SHOWN], found.scores[:SHOWN], relevant, total, predicted))
    return answers


def measured(answers: Sequence[Answer], labels: Sequence[str]) -> Measures:
    """The measures of answers to queries with these labels."""
    return measure([a.relevant for a in answers], [a.total for a in answers], labels)
