"""Tuning: the vote that serves a gallery best, measured on queries whose labels taught nothing, and published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import IndexStore, IndexVersion
from cbir.core.ensemble import choose_runtime
from cbir.core.evaluation import bootstrap_interval, calibration_error
from cbir.core.metric import MIN_IMAGES
from cbir.core.vote import Curve, VoteSettings, fit_calibration, probability_of_relevance
from cbir.indexer.build import EmbeddingRun, ImageSources, Progress, RunSettings, VersionContent, write_version
from cbir.indexer.tune.cross_fit import MemberSpace, Sharpening, member_space
from cbir.indexer.tune.objective import Trial, average_precisions, top_hits
from cbir.indexer.tune.score_table import ScoreTable, score_table
from cbir.indexer.tune.tuning_material import TuningMaterial, gather
from cbir.indexer.tune.tuning_report import TuningReport
from cbir.indexer.tune.vote_search import SearchBudget, search_vote

__all__ = ["tune"]

Floats = NDArray[np.float32]
#: Fewer queries than these tell chance from gain too badly.
MIN_QUERIES = 20


def tune(
    index: Path,
    queries: ImageSources | None = None,
    settings: RunSettings | None = None,
    budget: SearchBudget | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    use_labels: bool = True,
) -> TuningReport:
    """Choose the vote and publish it as a new version, unless it is no gain.

    A vote that proves to be the best one already is published where its calibration is new.

    Args:
        queries: Labelled query images; None: the gallery's own, each without its kin of the same bytes.
        use_labels: False tunes as a gallery without labels is tuned; that of the metric was chosen when indexing.

    Raises:
        ArtifactError: No index, or its cache of raw embeddings is gone.
        SourceError: None of the queries can be used.
    """
    settings, budget = settings or RunSettings(), budget or SearchBudget()
    report = on_progress or (lambda _: None)
    store = IndexStore(index)
    with store.lock():
        version = store.open()
        version.check_ensemble(version.manifest.ensemble)
        run = EmbeddingRun(version.manifest.ensemble, index / "cache", settings, on_progress)
        material = gather(version, run, queries)
        device = "cuda" if choose_runtime(settings.device, "torch") == "torch-cuda" else "cpu"
        tuning = _Tuning(version, material, budget, report, device)
        result = tuning.run() if use_labels else tuning.without_labels()
        if _same_vote(result.vote, version.vote):
            # Only the scores may mean more than before; none of the weights' rounding comes with them.
            stays = replace(version.vote, calibration=result.vote.calibration)
            result = replace(result, vote=stays, held_out=result.before, gain=(0.0, 0.0, 0.0) if result.gain else None)
            worthwhile = result.vote != version.vote
        else:
            worthwhile = result.gain is None or result.gain[0] > 0
        if not worthwhile:
            return replace(result, index=str(index))
        published = _publish(store, version, material, result.vote, report)
    return replace(result, index=str(index), version=published.name)


def _publish(
    store: IndexStore,
    version: IndexVersion,
    material: TuningMaterial,
    vote: VoteSettings,
    report: Callable[[Progress], None],
) -> IndexVersion:
    manifest, count = version.manifest, len(version.gallery)
    content = VersionContent(
        version.gallery,
        manifest.ensemble,
        lambda name: material.raw[name][:count],
        {name: str(facts["fingerprint"]) for name, facts in manifest.members.items()},
        vote,
        bool(manifest.settings.get("pseudo_labels")),
        manifest.settings.get("index"),
        manifest.settings,
        manifest.skipped,
    )
    writer = store.begin()
    try:
        return write_version(writer, content, report)
    except BaseException:
        writer.abandon()
        raise


class _Tuning:
    """One run over one version."""

    def __init__(
        self,
        version: IndexVersion,
        material: TuningMaterial,
        budget: SearchBudget,
        report: Callable[[Progress], None],
        device: str,
    ) -> None:
        self.vote, self.material, self.budget, self.report, self.device = version.vote, material, budget, report, device
        self.members = version.manifest.ensemble.members
        self.count = len(version.gallery)

    def run(self) -> TuningReport:
        spaces = [self._space(m.name, m.metric, self.vote.dims.get(m.name, m.dim), 2 * m.dim) for m in self.members]
        dims: Sequence[Sequence[int]] = [self._choices(space) for space in spaces]
        table = self._table(spaces, dims, None, None)
        if table is None:
            return self.without_labels()
        start = Trial(
            tuple(self.vote.weights[m.name] for m in self.members), tuple(choices[0] for choices in dims),
            self.vote.neighbours, self.vote.temperature, self.vote.label_share or 1.0, self.vote.head_share,
            self.vote.head_temperature, self.vote.text_share,
        )  # fmt: skip
        best, sharpening = self._search(table, start, dims, "tune"), None
        chosen_dims: Sequence[Sequence[int]] = [(dim,) for dim in best.dims]
        sharp = self._table(spaces, chosen_dims, Sharpening(), np.array(best.weights, np.float32))
        assert sharp is not None
        other = self._search(sharp, best, chosen_dims, "tune with expansion")
        # Expansion costs a second search a query: it must pay.
        if _mean(sharp, other) > _mean(table, best) + 0.002:
            table, best, sharpening, dims = sharp, other, Sharpening(), chosen_dims
        before = self._before(spaces)
        # From the old vote: the new one has seen the queries that are to be held out.
        held_out = self._held_out(table, replace(start, dims=tuple(choices[0] for choices in dims)), dims)
        scores, relevant = (t.cpu().numpy() for t in top_hits(table, best))
        curve, ece = _calibration(scores, relevant, 1.0 + best.label_share)
        vote = self._settings(best, sharpening, curve)
        return TuningReport(
            "", len(table), self.material.source, float(before.mean()), _mean(table, best), float(held_out.mean()),
            bootstrap_gain(held_out - before), _mean(table, _equal(best)),
            {m.name: _mean(table, _alone(best, i)) for i, m in enumerate(self.members)}, vote, ece, None,
        )  # fmt: skip

    def _space(self, name: str, metric: str, dim: int, widest: int) -> MemberSpace:
        return member_space(name, self.material.raw[name], self.count, metric, dim, widest)

    @staticmethod
    def _choices(space: MemberSpace) -> tuple[int, ...]:
        width = space.components.shape[1]
        wanted = (space.dim, space.dim // 2, 2 * space.dim)
        return tuple(dict.fromkeys(min(d, width) for d in wanted if d >= 1))

    def _table(
        self,
        spaces: Sequence[MemberSpace],
        dims: Sequence[Sequence[int]],
        sharpening: Sharpening | None,
        weights: Floats | None,
    ) -> ScoreTable | None:
        """The score table, or None where there are too few queries with a relevant image."""
        splits = self.material.splits
        if not splits or self.count < MIN_IMAGES:
            return None
        what = "score" if sharpening is None else "score with expansion"
        table = score_table(
            spaces, dims, self.material.codes, splits, names=self.material.names, sharpening=sharpening,
            weights=weights, device=self.device,
            report=lambda done, total: self.report(Progress(what, done, total)),
        )  # fmt: skip
        counted = np.flatnonzero(table.totals.cpu().numpy() > 0)
        return table.part(counted) if len(counted) >= MIN_QUERIES else None

    def _search(self, table: ScoreTable, start: Trial, dims: Sequence[Sequence[int]], stage: str) -> Trial:
        return search_vote(
            table, start, dims, self.budget, lambda done, total: self.report(Progress(stage, done, total))
        )

    def _before(self, spaces: Sequence[MemberSpace]) -> NDArray[np.float64]:
        """AP@10 of the vote as it was."""
        vote = self.vote
        dims = [(min(s.dim, s.components.shape[1]),) for s in spaces]
        weights = np.array([vote.weights[m.name] for m in self.members], np.float32)
        sharpening = None
        if vote.augmentation_neighbours or vote.expansion_neighbours:
            sharpening = Sharpening(
                max(1, vote.augmentation_neighbours), vote.augmentation_exponent, max(1, vote.expansion_neighbours),
                vote.expansion_exponent,
            )  # fmt: skip
        table = self._table(spaces, dims, sharpening, weights)
        assert table is not None
        trial = Trial(
            tuple(float(w) for w in weights), tuple(d[0] for d in dims), vote.neighbours, vote.temperature,
            vote.label_share, vote.head_share, vote.head_temperature, vote.text_share,
        )  # fmt: skip
        return average_precisions(table, trial)

    def _held_out(self, table: ScoreTable, start: Trial, dims: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """AP@10 of each half of the queries under the vote that the other half chose."""
        order = np.random.default_rng(self.budget.seed).permutation(len(table))
        halves = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        result = np.empty(len(table))
        for number, (mine, others) in enumerate((halves, halves[::-1])):
            chosen = self._search(table.part(others), start, dims, f"check {number + 1} of 2")
            result[mine] = average_precisions(table.part(mine), chosen)
        return result

    def _settings(self, best: Trial, sharpening: Sharpening | None, curve: Curve | None) -> VoteSettings:
        members = self.members
        total = sum(best.weights)
        return replace(
            self.vote,
            weights={m.name: w / total for m, w in zip(members, best.weights, strict=True)},
            dims={m.name: d for m, d in zip(members, best.dims, strict=True) if d != m.dim},
            neighbours=best.neighbours,
            temperature=best.temperature,
            label_share=best.label_share,
            head_share=best.head_share,
            head_temperature=best.head_temperature,
            text_share=best.text_share,
            augmentation_neighbours=sharpening.augmentation_neighbours if sharpening else 0,
            expansion_neighbours=sharpening.expansion_neighbours if sharpening else 0,
            calibration=curve,
            tuned=True,
        )

    def without_labels(self) -> TuningReport:
        """Nothing says what is relevant: the expansion that serves such galleries, and nothing is measured."""
        how = Sharpening()
        vote = replace(
            self.vote,
            augmentation_neighbours=how.augmentation_neighbours,
            augmentation_exponent=how.augmentation_exponent,
            expansion_neighbours=how.expansion_neighbours,
            expansion_exponent=how.expansion_exponent,
            label_share=0.0,
            calibration=None,
            tuned=True,
        )
        return TuningReport("", 0, self.material.source, None, None, None, None, None, {}, vote, None, None)


def _same_vote(one: VoteSettings, other: VoteSettings) -> bool:
    """Whether two votes rank alike."""
    weights = np.array([(one.weights[name], other.weights[name]) for name in one.weights])
    rest = [replace(vote, weights={}, calibration=None, tuned=True) for vote in (one, other)]
    return rest[0] == rest[1] and np.allclose(weights[:, 0], weights[:, 1])


def _calibration(
    scores: Floats, relevant: NDArray[np.bool_], top: float, folds: int = 5
) -> tuple[Curve | None, float | None]:
    """The curve of (Q, K) hits, and its expected calibration error on queries that it was not fitted to."""
    finite = np.isfinite(scores)
    curve = fit_calibration(scores[finite], relevant[finite], top)
    if curve is None:
        return None, None
    probabilities = np.zeros_like(scores)
    fold = np.random.default_rng(0).permutation(len(scores)) % folds
    for number in range(folds):
        others = finite & (fold != number)[:, None]
        fitted = fit_calibration(scores[others], relevant[others], top) or curve
        probabilities[fold == number] = probability_of_relevance(scores[fold == number], fitted)
    return curve, calibration_error(probabilities[finite], relevant[finite])


def bootstrap_gain(differences: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean of the queries' differences, and its 95 % bootstrap interval."""
    low, high = bootstrap_interval(differences.tolist())
    return float(differences.mean()), low, high


def _mean(table: ScoreTable, trial: Trial) -> float:
    return float(average_precisions(table, trial).mean())


def _equal(trial: Trial) -> Trial:
    return replace(trial, weights=(1.0,) * len(trial.weights))


def _alone(trial: Trial, member: int) -> Trial:
    return replace(trial, weights=tuple(float(i == member) for i in range(len(trial.weights))))
