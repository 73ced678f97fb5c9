"""The confusion matrix: the label of the first hit against the true label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import Gallery
from cbir.indexer.evaluate.answers import Answer

__all__ = ["NO_LABEL", "OTHERS", "Confusion", "ConfusionTable", "confusions"]

#: The column of first hits that have no label.
NO_LABEL = "(no label)"
OTHERS = "(others)"


@dataclass(frozen=True)
class Confusion:
    """Queries of one class whose first hit has the label of another.

    Attributes:
        queries: Their positions among the queries.
        share: Their share of the queries of the true class.
    """

    true: str
    found: str
    queries: tuple[int, ...]
    share: float


@dataclass(frozen=True)
class ConfusionTable:
    """The labels of first hits by true class.

    Attributes:
        pairs: The confusions, most frequent first.
        labels: (L,) the classes of the matrix's rows.
        columns: Names of its columns: the same classes, then further ones.
        matrix: (L, C) number of queries by true class and label of the first hit.
        classes: Number of classes; if there are many, the matrix has only the most confused ones.
    """

    pairs: tuple[Confusion, ...]
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    matrix: NDArray[np.int64]
    classes: int


def confusions(gallery: Gallery, answers: Sequence[Answer], labels: Sequence[str], most: int = 30) -> ConfusionTable:
    """Count first hits; queries without a relevant image, or without any hit, are left out.

    Args:
        labels: True label of each query.
        most: Most classes in the matrix.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for query, (answer, label) in enumerate(zip(answers, labels, strict=True)):
        if answer.total > 0 and len(answer.rows):
            code = int(gallery.label_codes[answer.rows[0]])
            places.setdefault((label, gallery.labels[code] if code >= 0 else NO_LABEL), []).append(query)
    asked: dict[str, int] = {}
    wrong: dict[str, int] = {}
    for (true, found), queries in places.items():
        asked[true] = asked.get(true, 0) + len(queries)
        if true != found:
            # Both classes of a confusion count as confused.
            wrong[true] = wrong.get(true, 0) + len(queries)
            wrong[found] = wrong.get(found, 0) + len(queries)
    pairs = [
        Confusion(true, found, tuple(queries), len(queries) / asked[true])
        for (true, found), queries in places.items()
        if true != found
    ]
    pairs.sort(key=lambda pair: (-len(pair.queries), pair.true, pair.found))
    classes = sorted({label for pair in places for label in pair} - {NO_LABEL})
    shown = sorted(sorted(classes, key=lambda name: (-wrong.get(name, 0), name))[:most])
    columns = [*shown]
    columns += [OTHERS] if len(classes) > len(shown) else []
    columns += [NO_LABEL] if any(found == NO_LABEL for _, found in places) else []
    place = {name: i for i, name in enumerate(columns)}
    matrix = np.zeros((len(shown), len(columns)), np.int64)
    for (true, found), queries in places.items():
        if true in shown:
            matrix[place[true], place.get(found, place.get(OTHERS, -1))] += len(queries)
    return ConfusionTable(tuple(pairs), tuple(shown), tuple(columns), matrix, len(classes))
