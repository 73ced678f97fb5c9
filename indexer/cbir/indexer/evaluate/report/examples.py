"""Examples on the page: queries and their hits, as thumbnails inlined into it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from cbir.core.errors import ImageError
from cbir.core.files import read_uri
from cbir.core.images import decode_image
from cbir.indexer.evaluate.confusion import NO_LABEL, Confusion
from cbir.indexer.evaluate.report.findings import Findings

__all__ = ["ClassExamples", "Example", "Pair", "Picture", "Thumbnails", "near_pairs", "taken_for", "weakest_classes"]

_SIDE = 112
_QUALITY = 72
#: Most bytes of all thumbnails on a page, as base64 text; further ones are left out.
_BUDGET = 3 * 2**20


@dataclass(frozen=True)
class Picture:
    """One image on the page.

    Attributes:
        source: The thumbnail as a ``data:`` URI; None if there is none.
        why: Why there is none.
        right: Whether the image is relevant; None for a query.
    """

    source: str | None
    why: str
    id: str
    label: str
    score: float | None = None
    right: bool | None = None


@dataclass(frozen=True)
class Example:
    """A query and its hits, best first."""

    query: Picture
    ap: float
    hits: tuple[Picture, ...]


@dataclass(frozen=True)
class ClassExamples:
    """A class with a low MAP@10, and its worst queries."""

    label: str
    map_at_10: float
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Pair:
    """A query and one gallery image."""

    query: Picture
    image: Picture
    note: str


class Thumbnails:
    """Makes thumbnails, each once, within a budget of bytes."""

    def __init__(self, budget: int = _BUDGET) -> None:
        self._left = budget
        self._known: dict[str, tuple[str | None, str]] = {}

    def of(self, uri: str) -> tuple[str | None, str]:
        """The thumbnail of an image as a ``data:`` URI, or None and the reason in a few words."""
        if uri not in self._known:
            self._known[uri] = self._make(uri)
        source, why = self._known[uri]
        if source is not None:
            # Every use adds its bytes to the page, even if the thumbnail is made only once.
            if len(source) > self._left:
                return None, "left out: the page is full"
            self._left -= len(source)
        return source, why

    def _make(self, uri: str) -> tuple[str | None, str]:
        try:
            pixels = decode_image(read_uri(uri)).pixels
        except ImageError:
            return None, "cannot be read any more"
        image = Image.fromarray(pixels)
        image.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_QUALITY)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), ""


def weakest_classes(
    findings: Findings, thumbnails: Thumbnails, classes: int = 6, each: int = 2
) -> tuple[ClassExamples, ...]:
    """The classes with the lowest MAP@10, each with its worst queries; classes without errors are left out."""
    evaluation = findings.evaluation
    by_class: dict[str, list[tuple[float, int]]] = {}
    for query, ap in zip(evaluation.counted, evaluation.ensemble.ap, strict=True):
        by_class.setdefault(findings.queries.labels[query], []).append((ap, query))
    order = sorted(evaluation.ensemble.per_class.items(), key=lambda item: (item[1], item[0]))
    return tuple(
        ClassExamples(label, value, tuple(_example(findings, thumbnails, q, ap) for ap, q in worst))
        for label, value in order[:classes]
        if value < 1 and (worst := sorted(by_class[label])[:each])
    )


def taken_for(
    findings: Findings, thumbnails: Thumbnails, pairs: Sequence[Confusion]
) -> tuple[tuple[Confusion, Pair], ...]:
    """Each confusion with an example: a query and its first hit."""
    result = []
    for pair in pairs:
        query = pair.queries[0]
        answer = findings.evaluation.answers[query]
        hit = _hit(findings, thumbnails, int(answer.rows[0]), float(answer.scores[0]), False)
        result.append((pair, Pair(_query(findings, thumbnails, query), hit, "")))
    return tuple(result)


def near_pairs(findings: Findings, thumbnails: Thumbnails, most: int = 12) -> tuple[Pair, ...]:
    """Queries and their near duplicates in the gallery, most similar first; two that find each other are one pair."""
    gallery, queries = findings.gallery, findings.queries
    seen: set[frozenset[str]] = set()
    pairs = []
    for near in sorted(findings.evaluation.near, key=lambda pair: (pair.bits, pair.query)):
        ends = frozenset({queries.uris[near.query], gallery.uri(near.row)})
        if ends in seen:
            continue
        seen.add(ends)
        code = int(gallery.label_codes[near.row])
        same = code >= 0 and gallery.labels[code] == queries.labels[near.query]
        note = f"{near.bits} of 64 bits differ"
        pairs.append(
            Pair(_query(findings, thumbnails, near.query), _hit(findings, thumbnails, near.row, None, same), note)
        )
        if len(pairs) == most:
            break
    return tuple(pairs)


def _example(findings: Findings, thumbnails: Thumbnails, query: int, ap: float) -> Example:
    answer = findings.evaluation.answers[query]
    hits = zip(answer.rows, answer.scores, answer.relevant, strict=False)
    return Example(
        _query(findings, thumbnails, query),
        ap,
        tuple(_hit(findings, thumbnails, int(row), float(score), bool(right)) for row, score, right in hits),
    )


def _query(findings: Findings, thumbnails: Thumbnails, query: int) -> Picture:
    queries = findings.queries
    return Picture(*thumbnails.of(queries.uris[query]), queries.ids[query], queries.labels[query])


def _hit(findings: Findings, thumbnails: Thumbnails, row: int, score: float | None, right: bool) -> Picture:
    gallery = findings.gallery
    code = int(gallery.label_codes[row])
    label = gallery.labels[code] if code >= 0 else NO_LABEL
    return Picture(*thumbnails.of(gallery.uri(row)), gallery.ids[row], label, score, right)
