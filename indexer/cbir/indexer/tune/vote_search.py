"""The search for a better vote: dimensions first, then CMA-ES over weights and vote parameters, then pruning.

The objective is piecewise constant (so it has no useful gradient) and has few, continuous parameters, which suits the
covariance matrix adaptation evolution strategy (Hansen and Ostermeier, "Completely Derandomized Self-Adaptation in
Evolution Strategies", 2001).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.indexer.tune.budget import SearchBudget
from cbir.indexer.tune.objective import Trial, average_precisions
from cbir.indexer.tune.score_table import ScoreTable

__all__ = ["search_vote"]

#: A difference in MAP@10 that is too small to matter.
USELESS = 0.0005
#: MAP@10 that a member must add to be worth its forward pass in every query, its vectors and its memory.
WORTH = 0.002
#: Members whose weight is below this share of the largest may be replaceable: the others are tuned without them.
_LIGHT = 0.25
#: The smallest weight that is tried, as a share of the largest.
_FAINT = 0.006
_WEIGHT = (math.log(0.005), math.log(20.0))
_VOTE = {
    "neighbours": (math.log(1), math.log(50)),
    "temperature": (math.log(0.005), math.log(0.5)),
    "label_share": (math.log(0.02), math.log(4.0)),
    "head_share": (0.0, 1.0),
    "head_temperature": (math.log(0.01), math.log(0.5)),
    "text_share": (0.0, 1.0),
}
#: Parameters that are searched on a linear scale; the others are on a logarithmic one.
_LINEAR = {"head_share", "text_share"}


def search_vote(
    table: ScoreTable,
    start: Trial,
    dims: Sequence[Sequence[int]],
    budget: SearchBudget,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Trial:
    """The best vote found for a table.

    Args:
        start: Where the search begins.  If its ``label_share`` is 0 or the table has no classes, there is no label
            vote.
        dims: For each member the dimensions that the table has.
    """
    with_labels = start.label_share > 0 and table.classes > 0
    # Dimensions are chosen without the label vote, which would hide most of their effect.
    plain = _choose_dims(table, replace(start, label_share=0.0), dims)
    # Members that a previous tuning gave the weight 0 get a small one, so that they may win it back.
    least = _FAINT * max(start.weights)
    everybody = replace(start, dims=plain.dims, weights=tuple(max(w, least) for w in start.weights))
    best = _evolve(table, everybody, with_labels, budget, report)
    return _without_the_useless(
        table, best, lambda trial, trials: _evolve(table, trial, with_labels, replace(budget, trials=trials), _silent),
        budget.trials // 3,
    )  # fmt: skip


def _silent(done: int, total: int) -> None:
    """Report no progress, for short searches."""


def _without_the_useless(table: ScoreTable, trial: Trial, evolve: Callable[[Trial, int], Trial], trials: int) -> Trial:
    """Set the weight of members to 0 that add too little, or no more than chance; the lightest first, never the last
    one.

    What a member adds is measured against the best vote of the others, which are weighted anew without it.
    """
    value = _measured(table, trial)
    for m in np.argsort(trial.weights):
        weights = tuple(0.0 if i == m else w for i, w in enumerate(trial.weights))
        if trial.weights[m] <= 0 or not any(weights):
            continue
        without = replace(trial, weights=weights)
        if not _is_worth_it(value, other := _measured(table, without)):
            trial, value = without, other
            continue
        if trial.weights[m] < _LIGHT * max(trial.weights):
            without = evolve(without, trials)
            if not _is_worth_it(value, other := _measured(table, without)):
                trial, value = without, other
    return trial


def _is_worth_it(value: NDArray[np.float64], without: NDArray[np.float64]) -> bool:
    """Whether AP@10 (Q,) drops without a member by more than it must add, and by more than two standard errors."""
    loss = value - without
    return float(loss.mean()) > max(WORTH, 2 * float(loss.std()) / math.sqrt(len(loss)))


def _measured(table: ScoreTable, trial: Trial) -> NDArray[np.float64]:
    return np.asarray(average_precisions(table, [trial])[0])


def _value(table: ScoreTable, trial: Trial) -> float:
    return float(_measured(table, trial).mean())


def _choose_dims(table: ScoreTable, trial: Trial, dims: Sequence[Sequence[int]]) -> Trial:
    value = _value(table, trial)
    for m, choices in enumerate(dims):
        for dim in choices:
            if dim == trial.dims[m] or trial.weights[m] <= 0:
                continue
            other = replace(trial, dims=(*trial.dims[:m], dim, *trial.dims[m + 1 :]))
            # More dimensions cost memory and time, so they must gain something.
            margin = 0.001 if dim > trial.dims[m] else 0.0
            if (found := _value(table, other)) > value + margin:
                trial, value = other, found
    return trial


def _evolve(
    table: ScoreTable, start: Trial, with_labels: bool, budget: SearchBudget, report: Callable[[int, int], None]
) -> Trial:
    from cmaes import CMA

    active = np.flatnonzero(start.weights)
    members = len(active)
    # Without class names there is nothing to give a share to.
    names = [name for name in _VOTE if name != "text_share" or table.names] if with_labels else []
    bounds = np.array([_WEIGHT] * members + [_VOTE[name] for name in names])
    if len(bounds) == 1:
        return start  # with one member and no labels there is nothing to choose
    low, width = bounds[:, 0], bounds[:, 1] - bounds[:, 0]

    def decode(x: np.ndarray) -> Trial:
        raw = low + width * np.clip(x, 0, 1)
        weights = np.zeros(len(start.weights))
        weights[active] = np.exp(raw[:members])
        vote = dict(zip(names, raw[members:], strict=True))
        changes: dict[str, Any] = {
            name: float(value if name in _LINEAR else math.exp(value)) for name, value in vote.items()
        }
        if "neighbours" in changes:
            changes["neighbours"] = round(changes["neighbours"])
        return replace(start, weights=tuple(float(w) for w in weights / weights.sum()), **changes)

    def encode(trial: Trial) -> np.ndarray:
        weights = np.maximum(np.array(trial.weights)[active] / max(trial.weights), _FAINT)
        vote = [getattr(trial, n) if n in _LINEAR else math.log(max(getattr(trial, n), 1e-6)) for n in names]
        place = (np.concatenate([np.log(weights), vote]) - low) / width
        return np.asarray(np.clip(place, 0.02, 0.98), np.float64)

    optimizer = CMA(mean=encode(start), sigma=0.15, bounds=np.array([[0.0, 1.0]] * len(bounds)), seed=budget.seed)
    best, best_value, done = start, _value(table, start), 0
    while done < budget.trials and not optimizer.should_stop():
        places = [optimizer.ask() for _ in range(optimizer.population_size)]
        trials = [decode(x) for x in places]
        values = average_precisions(table, trials).mean(axis=1)
        optimizer.tell([(x, -float(value)) for x, value in zip(places, values, strict=True)])
        if values.max() > best_value:
            best, best_value = trials[int(values.argmax())], float(values.max())
        done += len(trials)
        report(done, budget.trials)
    # The mean of the search distribution is less overfitted than the best sample.
    middle = decode(optimizer.mean)
    return middle if _value(table, middle) >= best_value - USELESS else best
