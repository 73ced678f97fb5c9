"""The choice of a vote for one version: the search, the check on held-out queries, and parts of the vote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import IndexVersion
from cbir.core.evaluation import bootstrap_interval, calibration_error
from cbir.core.metric import MIN_IMAGES
from cbir.core.vote import Curve, VoteSettings, fit_calibration, probability_of_relevance
from cbir.indexer.evaluate import FoldMetrics, MemberSpace, Sharpening, member_space
from cbir.indexer.tune.budget import SearchBudget
from cbir.indexer.tune.objective import Trial, average_precisions, top_hits
from cbir.indexer.tune.score_table import ScoreTable, score_table
from cbir.indexer.tune.time_left import TimeLeft
from cbir.indexer.tune.tuning_material import TuningMaterial
from cbir.indexer.tune.tuning_report import Gain, Step, TuningReport
from cbir.indexer.tune.vote_search import search_vote

__all__ = ["VoteChoice"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Dims = Sequence[Sequence[int]]
#: Pairs of query numbers and a vote that was chosen on other queries.
Halves = Sequence[tuple[NDArray[np.int64], Trial]]

#: With fewer queries than this, gains cannot be told from chance.
MIN_QUERIES = 20
#: MAP@10 that query expansion must add, as it takes a second search for every query.
_EXPANSION_WORTH = 0.002
_LABEL_VOTE = ("neighbours", "temperature", "label_share", "head_share", "head_temperature", "text_share")


@dataclass(frozen=True)
class _Found:
    """The vote that the search found, and what it is compared with.

    Attributes:
        live: The live vote, measured on ``live_table``.
        before: (Q,) AP@10 of the live vote.
    """

    live: Trial
    live_table: ScoreTable
    live_sharpening: Sharpening | None
    before: Doubles
    best: Trial
    table: ScoreTable
    sharpening: Sharpening | None
    halves: Halves


class VoteChoice:
    """The choice of a vote for one version.

    Args:
        device: Where similarities are computed.
    """

    def __init__(
        self, version: IndexVersion, material: TuningMaterial, budget: SearchBudget, time_left: TimeLeft, device: str
    ) -> None:
        self._vote, self._material, self._budget = version.vote, material, budget
        self._time_left, self._device = time_left, device
        self._members = version.manifest.ensemble.members
        self._count = len(version.gallery)
        self._spaces: list[MemberSpace] = []
        self._metrics: FoldMetrics | None = None
        self._found: _Found | None = None

    def whole(self) -> TuningReport:
        """Search all settings at once; without enough labels, choose what suits galleries without labels."""
        splits, count = self._material.splits, self._count
        if not splits or count < MIN_IMAGES:
            return self.without_labels()
        for i, m in enumerate(self._members):
            self._time_left.tell(f"components of {m.name}", i, len(self._members))
            raw, dim = self._material.raw[m.name], self._vote.dims.get(m.name, m.dim)
            self._spaces.append(member_space(m, raw, count, dim, 2 * m.dim))
        self._metrics = FoldMetrics(self._spaces, self._material.codes, splits)
        dims: Dims = [_choices(space) for space in self._spaces]
        table = self._table(dims, None, None)
        if table is None:
            return self.without_labels()
        usual = tuple(choices[0] for choices in dims)
        live = _trial(self._vote, [m.name for m in self._members], usual)
        start = replace(live, label_share=live.label_share or 1.0)
        best, sharpening, plain = self._search(table, start, dims, "tune"), None, table
        sharp = self._table([(dim,) for dim in best.dims], Sharpening(), np.array(best.weights, np.float32))
        assert sharp is not None
        other = self._search(sharp, best, [(dim,) for dim in best.dims], "tune with expansion")
        if _mean(sharp, other) > _mean(table, best) + _EXPANSION_WORTH:
            dims = [(dim,) for dim in best.dims]
            table, best, sharpening = sharp, other, Sharpening()
        live_table, live_sharpening = self._as_live(plain, usual)
        # Starts from the live vote, because the new one was chosen on the queries that are held out here.
        halves = self._halves(table, replace(start, dims=tuple(choices[0] for choices in dims)), dims)
        before = average_precisions(live_table, [live])[0]
        self._found = _Found(live, live_table, live_sharpening, before, best, table, sharpening, halves)
        held_out = self._held_out(table, halves)
        return self._report(best, table, sharpening, held_out)

    def single_steps(self) -> list[tuple[Step, TuningReport]]:
        """The gains of parts of the new vote over the live one, best first; each on queries it was not chosen on."""
        found = self._found
        if found is None:
            return []
        steps: list[tuple[str, ScoreTable, Sharpening | None, Trial, Halves]] = []
        if found.live_sharpening is None:
            usual, weights = [(dim,) for dim in found.live.dims], np.array(found.live.weights, np.float32)
            sharp = self._table(usual, Sharpening(), weights)
            assert sharp is not None
            # Expansion alone has no parameters that were chosen on queries, so all of them are held out.
            every = np.arange(len(sharp))
            steps.append(("expansion", sharp, Sharpening(), found.live, [(every, found.live)]))
        parts: dict[str, Callable[[Trial], Trial]] = {
            "weights": lambda chosen: replace(found.live, weights=chosen.weights, dims=self._dims_there(chosen)),
            "label vote": lambda chosen: replace(found.live, **{name: getattr(chosen, name) for name in _LABEL_VOTE}),
        }
        for name, part in parts.items():
            in_part = [(mine, part(chosen)) for mine, chosen in found.halves]
            steps.append((name, found.live_table, found.live_sharpening, part(found.best), in_part))
        results = []
        for name, table, sharpening, trial, halves in steps:
            report = self._report(trial, table, sharpening, self._held_out(table, halves))
            assert report.gain is not None
            results.append((Step(name, report.gain), report))
        return sorted(results, key=lambda step: -step[0].gain[0])

    def without_labels(self) -> TuningReport:
        """Tuning without labels: choose the query expansion that suits such galleries; nothing can be measured."""
        vote = replace(_sharpened(self._vote, Sharpening()), label_share=0.0, calibration=None, tuned=True)
        return TuningReport("", 0, self._material.source, None, None, None, None, None, {}, vote, None, None)

    def _table(self, dims: Dims, sharpening: Sharpening | None, weights: Floats | None) -> ScoreTable | None:
        """The score table; None if too few queries have a relevant image."""
        table = score_table(
            self._spaces, dims, self._material.codes, self._material.splits, metrics=self._metrics,
            names=self._material.names, sharpening=sharpening, weights=weights, device=self._device,
            report=self._time_left.table("score" if sharpening is None else "score with expansion"),
        )  # fmt: skip
        counted = np.flatnonzero(table.totals > 0)
        return table.part(counted) if len(counted) >= MIN_QUERIES else None

    def _search(self, table: ScoreTable, start: Trial, dims: Dims, stage: str) -> Trial:
        return search_vote(table, start, dims, self._budget, self._time_left.votes(stage, len(table)))

    def _as_live(self, plain: ScoreTable, dims: Sequence[int]) -> tuple[ScoreTable, Sharpening | None]:
        """The score table that the live vote is measured on."""
        vote = self._vote
        if not (vote.augmentation_neighbours or vote.expansion_neighbours):
            return plain, None
        how = Sharpening(
            max(1, vote.augmentation_neighbours), vote.augmentation_exponent, max(1, vote.expansion_neighbours),
            vote.expansion_exponent,
        )  # fmt: skip
        weights = np.array([vote.weights[m.name] for m in self._members], np.float32)
        table = self._table([(dim,) for dim in dims], how, weights)
        assert table is not None
        return table, how

    def _halves(self, table: ScoreTable, start: Trial, dims: Dims) -> Halves:
        """For each half of the queries, their numbers and the vote chosen on the other half."""
        order = np.random.default_rng(self._budget.seed).permutation(len(table))
        halves = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        return [
            (mine, self._search(table.part(others), start, dims, f"check {number + 1} of 2"))
            for number, (mine, others) in enumerate((halves, halves[::-1]))
        ]

    @staticmethod
    def _held_out(table: ScoreTable, halves: Halves) -> Doubles:
        """(Q,) AP@10 of the queries, each under the vote that was not chosen on it."""
        result = np.empty(len(table))
        for mine, trial in halves:
            result[mine] = average_precisions(table.part(mine), [trial])[0]
        return result

    def _dims_there(self, chosen: Trial) -> tuple[int, ...]:
        """The dimensions of a vote, as far as the live vote's table has them."""
        assert self._found is not None
        there, live = set(self._found.live_table.keys), self._found.live
        return tuple(d if (m, d) in there else live.dims[m] for m, d in enumerate(chosen.dims))

    def _report(
        self, trial: Trial, table: ScoreTable, sharpening: Sharpening | None, held_out: Doubles
    ) -> TuningReport:
        assert self._found is not None
        scores, relevant = top_hits(table, trial)
        curve, ece = _calibration(scores, relevant, 1.0 + trial.label_share)
        alone = [replace(trial, weights=tuple(float(i == m) for i in range(len(self._members))))
                 for m in range(len(self._members))]  # fmt: skip
        others = average_precisions(table, [trial, replace(trial, weights=(1.0,) * len(alone)), *alone]).mean(axis=1)
        return TuningReport(
            "", len(table), self._material.source, float(self._found.before.mean()), float(others[0]),
            float(held_out.mean()), gain_of(held_out - self._found.before), float(others[1]),
            {m.name: float(value) for m, value in zip(self._members, others[2:], strict=True)},
            self._settings(trial, sharpening, curve), ece, None,
        )  # fmt: skip

    def _settings(self, trial: Trial, sharpening: Sharpening | None, curve: Curve | None) -> VoteSettings:
        members, total = self._members, sum(trial.weights)
        return replace(
            _sharpened(self._vote, sharpening),
            weights={m.name: w / total for m, w in zip(members, trial.weights, strict=True)},
            dims={m.name: d for m, d in zip(members, trial.dims, strict=True) if d != m.dim},
            calibration=curve,
            tuned=True,
            **{name: getattr(trial, name) for name in _LABEL_VOTE},
        )


def _choices(space: MemberSpace) -> tuple[int, ...]:
    width = space.components.shape[1]
    wanted = (space.dim, space.dim // 2, 2 * space.dim)
    return tuple(dict.fromkeys(min(d, width) for d in wanted if d >= 1))


def _trial(vote: VoteSettings, members: Sequence[str], dims: tuple[int, ...]) -> Trial:
    """The trial with the settings of a vote."""
    return Trial(tuple(vote.weights[m] for m in members), dims, **{name: getattr(vote, name) for name in _LABEL_VOTE})


def _sharpened(vote: VoteSettings, how: Sharpening | None) -> VoteSettings:
    if how is None:
        return replace(vote, augmentation_neighbours=0, expansion_neighbours=0)
    return replace(
        vote,
        augmentation_neighbours=how.augmentation_neighbours,
        augmentation_exponent=how.augmentation_exponent,
        expansion_neighbours=how.expansion_neighbours,
        expansion_exponent=how.expansion_exponent,
    )


def _calibration(
    scores: Floats, relevant: NDArray[np.bool_], top: float, folds: int = 5
) -> tuple[Curve | None, float | None]:
    """The calibration curve for (Q, K) hits, and its expected calibration error by cross-validation over queries."""
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


def gain_of(differences: Doubles) -> Gain:
    """Mean of the differences, one for each query, and its 95 % bootstrap interval."""
    low, high = bootstrap_interval(differences.tolist())
    return float(differences.mean()), low, high


def _mean(table: ScoreTable, trial: Trial) -> float:
    return float(average_precisions(table, [trial]).mean())
