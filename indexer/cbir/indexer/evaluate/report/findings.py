"""What a report shows beyond the measures: subsets, ablation, classes, confusions, calibration, near duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cbir.core.artifacts import Gallery, IndexVersion
from cbir.core.evaluation import Measures, bootstrap_interval, reliability
from cbir.core.search import Searcher
from cbir.indexer.build import Progress, RunSettings
from cbir.indexer.evaluate.confusion import ConfusionTable, confusions
from cbir.indexer.evaluate.cross_fitted import CrossFitted, judge_of
from cbir.indexer.evaluate.evaluation import EvaluationReport
from cbir.indexer.evaluate.member_subsets import SubsetTable, measure_subsets
from cbir.indexer.evaluate.query_set import QuerySet
from cbir.indexer.evaluate.recipe_steps import RecipeTable, measure_recipe

__all__ = ["Findings", "examine"]

_NOT_IN_FOLDS = RecipeTable(
    (), "the gallery's own images were asked, and the steps of the recipe would have learnt from them: give --queries"
)


@dataclass(frozen=True)
class Findings:
    """Everything that a report shows.

    Attributes:
        evaluation: The evaluation that ``cbir eval`` prints.
    """

    evaluation: EvaluationReport
    gallery: Gallery
    queries: QuerySet
    subsets: SubsetTable
    recipe: RecipeTable
    confusion: ConfusionTable

    def to_json(self) -> dict[str, Any]:
        """The document of :class:`EvaluationReport`, extended; it is stored in ``report.json``."""
        evaluation = self.evaluation
        return {
            **evaluation.to_json(),
            "precision_by_rank": {
                name: list(measures.precision_by_rank)
                for name, measures in {"ensemble": evaluation.ensemble, **evaluation.members}.items()
            },
            "best_member": self._best_member(),
            "subsets": [{"members": list(names), **m.to_json()} for names, m in self.subsets.subsets.items()],
            "all_subsets": self.subsets.complete,
            "member_gains": {
                g.member: {"without": g.without, "gain": g.gain, "gain_ci": list(g.interval)}
                for g in self.subsets.gains
            },
            "recipe": self._recipe(),
            "classes": self._classes(),
            "confusions": [
                {"true": pair.true, "found": pair.found, "queries": len(pair.queries), "share": pair.share}
                for pair in self.confusion.pairs
            ],
            "reliability": {
                name: values.tolist() for name, values in vars(reliability(*evaluation.scored_hits())).items()
            },
            "near_duplicate_pairs": [
                {
                    "query": self.queries.ids[pair.query],
                    "image": self.gallery.ids[pair.row],
                    "bits": pair.bits,
                    "images": pair.images,
                }
                for pair in evaluation.near
            ],
        }

    def _best_member(self) -> dict[str, Any] | None:
        """The member that is best alone, and what the ensemble gains over it."""
        members = self.evaluation.members
        if len(members) < 2:
            return None
        name = max(members, key=lambda member: members[member].map_at_10)
        difference = np.subtract(self.evaluation.ensemble.ap, members[name].ap)
        interval = bootstrap_interval(difference.tolist())
        return {"name": name, "gain": float(difference.mean()), "gain_ci": list(interval)}

    def _recipe(self) -> dict[str, Any]:
        steps = [
            {
                "name": step.name,
                "map@10": step.ensemble,
                "map@10_ci": list(step.interval),
                "over": step.over,
                "gain": step.gain,
                "gain_ci": list(step.gain_interval) if step.gain_interval else None,
                "members": dict(step.members),
            }
            for step in self.recipe.steps
        ]
        return {"steps": steps, "note": self.recipe.note}

    def _classes(self) -> dict[str, dict[str, Any]]:
        """MAP@10, number of queries that count, and number of gallery images, by label."""
        evaluation, gallery = self.evaluation, self.gallery
        asked = Counter(self.queries.labels[i] for i in evaluation.counted)
        sizes = np.bincount(gallery.label_codes[gallery.label_codes >= 0], minlength=len(gallery.labels))
        held = dict(zip(gallery.labels, sizes.tolist(), strict=True))
        return {
            label: {"map@10": value, "queries": asked[label], "gallery": held[label]}
            for label, value in evaluation.ensemble.per_class.items()
        }


def examine(
    version: IndexVersion,
    retriever: Searcher,
    queries: QuerySet,
    evaluation: EvaluationReport,
    cache: Path,
    settings: RunSettings,
    on_progress: Callable[[Progress], None] | None = None,
) -> Findings:
    """Measure what a report shows beyond the evaluation, which takes several times as long.

    Args:
        cache: Folder with the raw embeddings of gallery and queries.
    """
    gallery = retriever.gallery
    judge = judge_of(retriever, queries)
    known: dict[tuple[str, ...], Measures] = {(name,): m for name, m in evaluation.members.items()}
    known[retriever.members] = evaluation.ensemble
    return Findings(
        evaluation,
        gallery,
        queries,
        measure_subsets(retriever, queries, judge, known, on_progress),
        _NOT_IN_FOLDS
        if isinstance(retriever, CrossFitted)
        else measure_recipe(version, retriever, queries, judge, cache, settings, on_progress),
        confusions(gallery, evaluation.answers, queries.labels),
    )
