"""What an index answers to labelled queries, judged: which hits are relevant, and how many there were to find."""

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

#: MAP@R looks at no more than this many ranks.
DEEPEST_RANK = 1000
#: Hits of an answer that are kept.
SHOWN = 10
_BATCH = 256


@dataclass(frozen=True)
class Answer:
    """The hits of one query, best first.

    Attributes:
        rows: (K,) gallery rows, K <= 10.
        scores: (K,) in 0..1.
        relevant: (D,) whether the image at each rank has the query's label; D >= K.
        total: R, the relevant images of the gallery.
        predicted: The likeliest label, where the gallery has labels.
    """

    rows: NDArray[np.int64] = field(repr=False)
    scores: NDArray[np.float32] = field(repr=False)
    relevant: NDArray[np.bool_] = field(repr=False)
    total: int
    predicted: str | None


@dataclass(frozen=True)
class Judge:
    """What is known of each of Q queries before anything is searched.

    Attributes:
        own: Rows with the query's very bytes, which never count.
        codes: Place of the query's label among the gallery's, negative where the gallery has no such label.
        totals: R of each query.
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
        weights: (M,) of the members, or None for the index's own.
        deepest: Ranks that are looked at where a query has so many relevant images; 10 is faster, and enough for
            everything but MAP@R.
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
