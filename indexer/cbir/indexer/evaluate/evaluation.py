"""Evaluation: MAP@10 and related measures of the ensemble and of each member alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import IndexVersion
from cbir.core.errors import SourceError
from cbir.core.evaluation import CONVENTIONS, Measures, bootstrap_interval, calibration_error
from cbir.core.search import BITS, Appearance, Searcher
from cbir.core.vote import Fusion
from cbir.indexer.build import Progress, SkippedImage
from cbir.indexer.evaluate.answers import DEEPEST_RANK, SHOWN, Answer, ask, measured
from cbir.indexer.evaluate.cross_fitted import CrossFitted, judge_of
from cbir.indexer.evaluate.near_duplicates import NearDuplicate, find_near_duplicates
from cbir.indexer.evaluate.query_set import QuerySet, gallery_queries, source_queries

__all__ = ["EvaluationReport", "QuerySet", "evaluate", "gallery_queries", "name_classes", "source_queries"]

#: Hits with at least this score are more likely relevant than not.
LIKELY = 0.5
_BINS = 10
#: Classes that are named one by one.
NAMED = 10
_FOLDS = (
    "the gallery's labelled images are cut into five folds; each is asked of an index of all others, whose metric and "
    "heads were learnt without it; R counts the images of that index"
)


@dataclass(frozen=True)
class EvaluationReport:
    """The measures of one index on one set of queries.

    Attributes:
        answers: The ensemble's answer to each query.
        near: The queries with a near duplicate in the gallery.
        calibrated: Whether the index's scores are probabilities of relevance.
        unknown_classes: Queries by label that the gallery does not have, in the order of names.
        cross_fitted: The images of the gallery were asked in folds.
    """

    index: str
    version: str
    gallery: int
    ensemble: Measures
    members: dict[str, Measures]
    rank_fusion: Measures
    answers: tuple[Answer, ...] = field(repr=False)
    near: tuple[NearDuplicate, ...] = field(repr=False)
    skipped: tuple[SkippedImage, ...]
    unlabelled: int
    query_source: str
    calibrated: bool
    caution: str | None = None
    unknown_classes: Mapping[str, int] = field(default_factory=dict)
    cross_fitted: bool = False

    @property
    def near_duplicates(self) -> int:
        """Number of queries with a near duplicate in the gallery."""
        return len(self.near)

    @property
    def counted(self) -> list[int]:
        """Positions of the queries that have a relevant image; ``ensemble.ap`` is in this order."""
        return [i for i, answer in enumerate(self.answers) if answer.total > 0]

    def scored_hits(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Score and relevance of the first ten hits of all queries that count, concatenated."""
        answers = [self.answers[i] for i in self.counted]
        scores = [answer.scores for answer in answers]
        relevant = [answer.relevant[: len(answer.rows)] for answer in answers]
        return np.concatenate(scores), np.concatenate(relevant)

    def without_near_duplicates(self) -> float | None:
        """MAP@10 over the queries without a near duplicate; None if every query has one."""
        near = {pair.query for pair in self.near}
        kept = [ap for i, ap in zip(self.counted, self.ensemble.ap, strict=True) if i not in near]
        return float(np.mean(kept)) if kept else None

    def to_json(self) -> dict[str, Any]:
        """The document that ``cbir eval --json`` prints."""
        scores, relevant = self.scored_hits()
        likely = scores >= LIKELY
        return {
            "index": self.index,
            "version": self.version,
            "queries": self.ensemble.queries,
            "gallery": self.gallery,
            **_figures(self.ensemble),
            "members": {name: _figures(m) for name, m in self.members.items()},
            "rank_fusion": _figures(self.rank_fusion),
            "per_class": self.ensemble.per_class,
            "ece": calibration_error(scores, relevant, _BINS),
            f"precision@score>={LIKELY}": float(relevant[likely].mean()) if likely.any() else None,
            f"coverage@score>={LIKELY}": float(likely.mean()) if len(likely) else 0.0,
            "calibrated": self.calibrated,
            "queries_without_relevant": self.ensemble.without_relevant,
            "unknown_classes": {
                "count": len(self.unknown_classes),
                "queries": sum(self.unknown_classes.values()),
                "first": list(self.unknown_classes)[:NAMED],
            },
            "cross_fitted": self.cross_fitted,
            "queries_without_label": self.unlabelled,
            "near_duplicates": self.near_duplicates,
            "map@10_without_near_duplicates": self.without_near_duplicates(),
            "skipped": [{"uri": s.uri, "reason": s.reason, "code": s.code} for s in self.skipped],
            "conventions": self._conventions(),
        }

    def _conventions(self) -> dict[str, str]:
        return {
            **CONVENTIONS,
            "p@10": "relevant images among the first 10, over 10",
            "recall@10": "share of the R relevant images that is among the first 10",
            "cmc@1": "share of queries whose first hit is relevant",
            "map@r": f"like MAP@10 with k = R, the query's own number of relevant images; ranks up to {DEEPEST_RANK}",
            "map@10_ci": "95 % percentile bootstrap over queries, 2000 resamples, seeded",
            "ece": f"expected calibration error of the scores of all first {SHOWN} hits: {_BINS} bins of equal width, "
            "mean over hits of |mean score - share relevant| of their bin",
            "calibrated": "whether the index holds a curve from fused score to probability of relevance; without one "
            "the score is a clipped cosine, and the calibration figures say how far that is from a probability",
            f"precision@score>={LIKELY}": f"share relevant among the first {SHOWN} hits that score so much",
            f"coverage@score>={LIKELY}": f"share of the first {SHOWN} hits that score so much",
            "near_duplicates": f"queries with a gallery image (other than their own bytes) whose perceptual hash "
            f"differs in at most {BITS} of 64 bits and which the ensemble finds alike; they are counted, not left out",
            "queries": self.query_source,
            **({"folds": _FOLDS} if self.cross_fitted else {}),
            **({"caution": self.caution} if self.caution else {}),
        }


def evaluate(
    index: Path,
    version: IndexVersion,
    retriever: Searcher,
    queries: QuerySet,
    query_source: str,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    own: bool = False,
) -> EvaluationReport:
    """Measure the ensemble, rank fusion, and each member alone.

    Args:
        own: Whether the queries are images of the gallery, on which the projections were fitted.

    Raises:
        SourceError: No query has a relevant image.
    """
    judge = judge_of(retriever, queries)
    unknown = Counter(label for label, code in zip(queries.labels, judge.codes, strict=True) if code < 0)
    unknown_classes = dict(sorted(unknown.items()))
    if not any(judge.totals):
        raise SourceError(
            f"none of the {len(judge.totals)} queries has a relevant image in the gallery: "
            "their labels must be those of the gallery, which must hold other images of them"
            + (f"; it has none of {name_classes(unknown_classes)}" if unknown_classes else ""),
            reason="NO_RELEVANT_IMAGES",
        )
    one_hot = np.eye(len(retriever.members), dtype=np.float32)
    settings: dict[str, tuple[NDArray[np.float32] | None, Fusion]] = {
        "": (None, Fusion.WEIGHTED_VOTE),
        "rank fusion": (None, Fusion.RECIPROCAL_RANK),
        **{name: (one_hot[m], Fusion.WEIGHTED_VOTE) for m, name in enumerate(retriever.members)},
    }
    answers: dict[str, Sequence[Answer]] = {}
    for i, (name, (weights, fusion)) in enumerate(settings.items()):
        if on_progress is not None:
            on_progress(Progress("measure", i, len(settings)))
        answers[name] = ask(retriever, queries, judge, weights, fusion)
    results = {name: measured(given, queries.labels) for name, given in answers.items()}
    return EvaluationReport(
        str(index), version.name, len(retriever.gallery), results[""],
        {name: results[name] for name in retriever.members}, results["rank fusion"], tuple(answers[""]),
        tuple(find_near_duplicates(retriever.gallery, Appearance.of(version, retriever), queries, judge)),
        queries.skipped,
        queries.unlabelled, query_source, version.vote.calibration is not None,
        _caution(version, retriever) if own else None, unknown_classes, isinstance(retriever, CrossFitted),
    )  # fmt: skip


def name_classes(labels: Iterable[str]) -> str:
    """The first of some names, and how many more there are."""
    names = list(labels)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(repr(name) for name in names[:NAMED]) + more


def _figures(measures: Measures) -> dict[str, Any]:
    low, high = bootstrap_interval(measures.ap)
    return {**measures.to_json(), "map@10_ci": [low, high]}


def _caution(version: IndexVersion, retriever: Searcher) -> str | None:
    """A warning if the queries are images of the gallery, which makes the figures too good; else None."""
    in_folds = isinstance(retriever, CrossFitted)
    learnt = {
        "the GLRT metric": any(facts["fitted_on"] == "labels" for facts in version.manifest.members.values()),
        "the linear heads": bool(version.heads()),
        "the augmented vectors": version.vote.augmentation_neighbours > 0,
    }
    named = [name for name, so in learnt.items() if so and not in_folds]
    if version.vote.tuned:
        named.append("the tuned settings")
    if not named:
        return None
    much = "a little too high" if in_folds else "too high"
    return (
        f"{', '.join(named)} come from these very images and labels, so the figures are {much}, the more so the "
        "smaller the gallery: hold some images out and give them with --queries for honest ones"
    )
