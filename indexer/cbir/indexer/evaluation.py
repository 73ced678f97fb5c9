"""Evaluation: MAP@10 and its kin for the ensemble and for each member alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.errors import SourceError
from cbir.core.fusion import Fusion
from cbir.core.metrics import CONVENTIONS, Measures, measure
from cbir.core.near_duplicates import Appearance, close_hashes, confirmed
from cbir.core.retriever import Retriever, SearchSpec
from cbir.core.store import IndexVersion
from cbir.indexer.embedding import EmbeddingRun, Progress, RunSettings, SkippedImage
from cbir.indexer.pipeline import ImageSources

__all__ = ["EvaluationReport", "QuerySet", "evaluate", "gallery_queries", "source_queries"]

#: MAP@R looks at no more than this many ranks.
DEEPEST_RANK = 1000
#: Bits of the perceptual hash in which near duplicates differ at most.
NEAR_DUPLICATE_BITS = 4
_BATCH = 256


@dataclass(frozen=True)
class QuerySet:
    """Queries that are projected already.

    Attributes:
        vectors: (Q, sum of dims).
        labels: One a query.
        sha256: Hexadecimal digest of each query's bytes: images with the same bytes never count as hits.
        phashes: (Q,) perceptual hashes.
        skipped: Query images that could not be read.
        unlabelled: Queries that were left out as they have no label.
    """

    vectors: NDArray[np.float32]
    labels: list[str]
    sha256: list[str]
    phashes: NDArray[np.uint64]
    skipped: tuple[SkippedImage, ...] = ()
    unlabelled: int = 0


@dataclass(frozen=True)
class EvaluationReport:
    """The measures of one index on one set of queries."""

    index: str
    version: str
    gallery: int
    ensemble: Measures
    members: dict[str, Measures]
    rank_fusion: Measures
    near_duplicates: int
    skipped: tuple[SkippedImage, ...]
    unlabelled: int
    query_source: str
    caution: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The document `cbir eval --json` prints."""
        conventions = {
            **CONVENTIONS,
            "map@r": f"ranks up to {DEEPEST_RANK}",
            "near_duplicates": f"queries with a gallery image (other than their own bytes) whose perceptual hash "
            f"differs in at most {NEAR_DUPLICATE_BITS} of 64 bits; they are counted, not left out",
            "queries": self.query_source,
            **({"caution": self.caution} if self.caution else {}),
        }
        return {
            "index": self.index,
            "version": self.version,
            "queries": self.ensemble.queries,
            "gallery": self.gallery,
            **self.ensemble.to_json(),
            "members": {name: m.to_json() for name, m in self.members.items()},
            "rank_fusion": self.rank_fusion.to_json(),
            "per_class": self.ensemble.per_class,
            "queries_without_relevant": self.ensemble.without_relevant,
            "queries_without_label": self.unlabelled,
            "near_duplicates": self.near_duplicates,
            "skipped": [{"uri": s.uri, "reason": s.reason, "code": s.code} for s in self.skipped],
            "conventions": conventions,
        }


def source_queries(
    version: IndexVersion,
    retriever: Retriever,
    sources: ImageSources,
    cache: Path,
    settings: RunSettings,
    on_progress: Callable[[Progress], None] | None = None,
) -> QuerySet:
    """Embed the labelled images of sources with the index's ensemble; the index's cache serves them too.

    Raises:
        SourceError: No query image has a label, or none can be read.
        ArtifactError: The weights on this machine are not those of the index.
    """
    version.check_ensemble(version.manifest.ensemble)
    run = EmbeddingRun(version.manifest.ensemble, cache, settings, on_progress)
    found = sources.scan()
    labelled = [image for image in found if image.label is not None]
    if not labelled:
        raise SourceError(
            "the query images have no labels, so nothing says which hits are right: put them into one folder a class, "
            "or use a manifest with a label column",
            reason="NO_LABELS",
        )
    facts, skipped = run.run(labelled, sources)
    good = [image for image in labelled if image.id in facts]
    if not good:
        raise SourceError(
            f"none of the query images could be read; the first was {skipped[0].uri}: {skipped[0].reason}",
            reason="SOURCE_EMPTY",
        )
    digests = [facts[image.id].sha256 for image in good]
    raw = {m.name: run.raw(m.name, digests) for m in version.manifest.ensemble.members}
    return QuerySet(
        retriever.project(raw),
        [str(image.label) for image in good],
        [digest.hex() for digest in digests],
        np.array([facts[image.id].phash for image in good], np.uint64),
        tuple(skipped),
        len(found) - len(labelled),
    )


def gallery_queries(retriever: Retriever, most: int | None = None, seed: int = 0) -> QuerySet:
    """The labelled gallery images themselves, for leave-one-out figures.

    Args:
        most: Draw at most this many at random.

    Raises:
        SourceError: The gallery has no labels.
    """
    gallery = retriever.gallery
    rows = np.flatnonzero(gallery.label_codes >= 0)
    if not len(rows):
        raise SourceError(
            "the gallery has no labels, so nothing says which hits are right: index one folder a class",
            reason="NO_LABELS",
        )
    unlabelled = len(gallery) - len(rows)
    if most is not None and len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    return QuerySet(
        retriever.stored(rows.tolist()),
        [gallery.labels[code] for code in gallery.label_codes[rows]],
        [gallery.sha256(int(row)) for row in rows],
        gallery.phashes[rows],
        unlabelled=unlabelled,
    )


def evaluate(
    index: Path,
    version: IndexVersion,
    retriever: Retriever,
    queries: QuerySet,
    query_source: str,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    own: bool = False,
) -> EvaluationReport:
    """Measure the ensemble, rank fusion, and each member alone.

    Args:
        own: The queries are gallery images themselves, which the projections were fitted on.

    Raises:
        SourceError: No query has a relevant image.
    """
    one_hot = np.eye(len(retriever.members), dtype=np.float32)
    settings: dict[str, tuple[NDArray[np.float32] | None, Fusion]] = {
        "": (None, Fusion.WEIGHTED_VOTE),
        "rank fusion": (None, Fusion.RECIPROCAL_RANK),
        **{name: (one_hot[m], Fusion.WEIGHTED_VOTE) for m, name in enumerate(retriever.members)},
    }
    results = {}
    for i, (name, (weights, fusion)) in enumerate(settings.items()):
        if on_progress is not None:
            on_progress(Progress("measure", i, len(settings)))
        results[name] = _measure(retriever, queries, weights, fusion)
        if results[name].queries == 0:
            raise SourceError(
                f"none of the {results[name].without_relevant} queries has a relevant image in the gallery: "
                "their labels must be those of the gallery, which must hold other images of them",
                reason="NO_RELEVANT_IMAGES",
            )
    return EvaluationReport(
        str(index), version.name, len(retriever.gallery), results[""],
        {name: results[name] for name in retriever.members}, results["rank fusion"],
        _near_duplicates(version, retriever, queries), queries.skipped, queries.unlabelled, query_source,
        _caution(version) if own else None,
    )  # fmt: skip


def _measure(retriever: Retriever, queries: QuerySet, weights: NDArray[np.float32] | None, fusion: Fusion) -> Measures:
    gallery = retriever.gallery
    place = {label: code for code, label in enumerate(gallery.labels)}
    sizes = np.bincount(gallery.label_codes[gallery.label_codes >= 0], minlength=len(place))
    own = [tuple(gallery.rows_with_sha256(digest)) for digest in queries.sha256]
    codes = [place.get(label, -2) for label in queries.labels]
    totals = [
        0 if code < 0 else int(sizes[code] - sum(gallery.label_codes[row] == code for row in rows))
        for code, rows in zip(codes, own, strict=True)
    ]
    depth = max(10, min(DEEPEST_RANK, max(totals, default=10)))
    lists: list[NDArray[np.bool_]] = []
    for start in range(0, len(codes), _BATCH):
        part = slice(start, start + _BATCH)
        specs = [SearchSpec(depth, weights, fusion, exclude_rows=rows) for rows in own[part]]
        for code, ranking in zip(codes[part], retriever.search(queries.vectors[part], specs), strict=True):
            lists.append(gallery.label_codes[ranking.rows] == code)
    return measure(lists, totals, queries.labels)


def _caution(version: IndexVersion) -> str | None:
    """What makes figures of a gallery's own images too good, or None."""
    if all(facts["fitted_on"] != "labels" for facts in version.manifest.members.values()):
        return None
    return (
        "the GLRT metric was fitted on these very images and labels, so the figures are too high, the more so the "
        "smaller the gallery: hold some images out and give them with --queries for honest ones"
    )


def _near_duplicates(version: IndexVersion, retriever: Retriever, queries: QuerySet) -> int:
    hashes, appearance, count = retriever.gallery.phashes, Appearance.of(version), 0
    for vector, digest, phash in zip(queries.vectors, queries.sha256, queries.phashes, strict=True):
        rows, bits_off = close_hashes(hashes, int(phash), NEAR_DUPLICATE_BITS)
        foreign = ~np.isin(rows, retriever.gallery.rows_with_sha256(digest))
        rows, bits_off = rows[foreign], bits_off[foreign]
        if len(rows):
            seen = appearance.vectors(np.stack([vector, *retriever.stored(rows.tolist())]))
            count += bool(confirmed(bits_off, seen[1:] @ seen[0]).any())
    return count
