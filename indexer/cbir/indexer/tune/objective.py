"""MAP@10 of votes on a score table, which tuning maximises; computed by a compiled loop over queries and votes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import jit, side_by_side
from cbir.indexer.tune.score_table import ScoreTable

__all__ = ["Trial", "average_precisions", "top_hits"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

_MOST_NEIGHBOURS = 64
_HITS = 10
#: Number of queries that a thread handles at a time.
_CHUNK = 512


@dataclass(frozen=True)
class Trial:
    """A vote to measure; fields are named as in :class:`cbir.core.vote.settings.VoteSettings`.

    Attributes:
        weights: Weight of each member.
        dims: Dimension of each member.
    """

    weights: tuple[float, ...]
    dims: tuple[int, ...]
    neighbours: int = 10
    temperature: float = 0.05
    label_share: float = 0.0
    head_share: float = 0.5
    head_temperature: float = 0.1
    text_share: float = 0.0


def average_precisions(table: ScoreTable, trials: Sequence[Trial]) -> NDArray[np.float64]:
    """(T, Q) AP@10 of every query (all have R > 0) under each of T votes."""
    _, relevant = _ranked(table, trials)
    precision = relevant.cumsum(axis=2) / np.arange(1, _HITS + 1)
    return np.asarray((precision * relevant).sum(axis=2) / np.minimum(table.totals, _HITS), np.float64)


def top_hits(table: ScoreTable, trial: Trial) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores (before calibration) and relevance of each query's best hits: (Q, count) float and (Q, count) bool."""
    scores, relevant = _ranked(table, [trial])
    return scores[0], relevant[0]


def _ranked(table: ScoreTable, trials: Sequence[Trial]) -> tuple[Floats, NDArray[np.bool_]]:
    place = {key: number for number, key in enumerate(table.keys)}
    which = np.array([[place[key] for key in enumerate(trial.dims)] for trial in trials])
    weights = np.array([trial.weights for trial in trials], np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    settings = np.array(
        [(t.neighbours, t.temperature, t.label_share, t.head_share, t.head_temperature, t.text_share) for t in trials],
        np.float32,
    )
    scores = np.empty((len(trials), len(table), _HITS), np.float32)
    relevant = np.empty(scores.shape, np.bool_)
    speakers = np.array(list(table.names), np.int64)
    names = list(table.names.values())
    said = np.stack(names, axis=1) if names else np.zeros((len(table), 0, 0), np.float32)

    def rank(start: int) -> None:
        part = slice(start, start + _CHUNK)
        _rank(
            table.similarities[part], table.candidate_codes[part], table.candidate_rows[part], table.counts[part],
            table.heads[part], said[part], speakers, table.codes[part], table.classes, which, weights, settings,
            scores[:, part], relevant[:, part],
        )  # fmt: skip

    side_by_side(rank, range(0, len(table), _CHUNK))
    return scores, relevant


@jit
def _rank(
    similarities: Floats,
    candidate_codes: Ints,
    candidate_rows: Ints,
    counts: Ints,
    heads: Floats,
    said: Floats,
    speakers: NDArray[np.int64],
    codes: Ints,
    classes: int,
    which: NDArray[np.int64],
    weights: Floats,
    settings: Floats,
    scores: Floats,
    relevant: NDArray[np.bool_],
) -> None:
    """Rank the candidates of every query under every vote.  The last two are filled."""
    trials, members = which.shape
    fused = np.empty(similarities.shape[2], np.float32)
    # The last element is for images without a label: it stays 0, which saves a branch in the loop over candidates.
    likely, opinion = np.zeros(classes + 1, np.float32), np.zeros(classes, np.float32)
    best, best_code = np.empty(_MOST_NEIGHBOURS, np.float32), np.empty(_MOST_NEIGHBOURS, np.int32)
    hits, hit_place = np.empty(_HITS, np.float32), np.empty(_HITS, np.int64)
    for q in range(len(counts)):
        count = counts[q]
        for t in range(trials):
            fused[:count] = 0
            for m in range(members):
                weight = weights[t, m]
                if weight > 0:
                    row = similarities[q, which[t, m]]
                    for c in range(count):
                        fused[c] += weight * row[c]
            neighbours, temperature, label_share = int(settings[t, 0]), settings[t, 1], settings[t, 2]
            head_share, head_temperature, text_share = settings[t, 3], settings[t, 4], settings[t, 5]
            if label_share > 0 and classes > 0:
                # The nearest neighbours, by insertion sort: candidates come nearly sorted, so few elements are moved.
                most, held = min(neighbours, _MOST_NEIGHBOURS, count), 0
                for c in range(count):
                    value = fused[c]
                    if held == most and value <= best[held - 1]:
                        continue
                    place = held if held < most else held - 1
                    held = min(held + 1, most)
                    while place > 0 and best[place - 1] < value:
                        best[place], best_code[place] = best[place - 1], best_code[place - 1]
                        place -= 1
                    best[place], best_code[place] = value, candidate_codes[q, c]
                likely[:] = 0
                total = np.float32(0)
                for k in range(held):
                    if best_code[k] >= 0:
                        vote = np.exp((best[k] - best[0]) / temperature)
                        likely[best_code[k]] += vote
                        total += vote
                if total > 0:
                    likely /= total
                if heads.shape[1] > 0 and head_share > 0:
                    opinion[:] = 0
                    for m in range(members):
                        weight = weights[t, m]
                        if weight > 0:
                            row = heads[q, which[t, m]]
                            for k in range(classes):
                                opinion[k] += weight * row[k]
                    top, mass = opinion.max(), np.float32(0)
                    for k in range(classes):
                        opinion[k] = np.exp((opinion[k] - top) / head_temperature)
                        mass += opinion[k]
                    # If no neighbour has a label, only the linear heads vote.
                    share = head_share if total > 0 else np.float32(1)
                    for k in range(classes):
                        likely[k] = share * opinion[k] / mass + (1 - share) * likely[k]
                if len(speakers) > 0 and text_share > 0:
                    opinion[:] = 0
                    mass = np.float32(0)
                    for n in range(len(speakers)):
                        weight = weights[t, speakers[n]] * said[q, n].sum()
                        mass += weight
                        for k in range(classes):
                            opinion[k] += weight * said[q, n, k]
                    opinion /= max(mass, np.float32(1e-12))
                    rest = 1 - text_share * opinion.sum()
                    for k in range(classes):
                        likely[k] = text_share * opinion[k] + rest * likely[k]
                    likely /= max(likely.sum(), np.float32(1e-12))
                likely[classes] = 0
                for c in range(count):
                    code = candidate_codes[q, c]
                    fused[c] += label_share * likely[np.uint32(code if code >= 0 else classes)]
            held = 0
            for c in range(count):
                value = fused[c]
                if held == _HITS and value < hits[held - 1]:
                    continue
                place = held if held < _HITS else held - 1
                # Ties are broken by row, that is by id.
                if (
                    held == _HITS
                    and value == hits[place]
                    and candidate_rows[q, c] > candidate_rows[q, hit_place[place]]
                ):
                    continue
                held = min(held + 1, _HITS)
                while place > 0 and (
                    hits[place - 1] < value
                    or (hits[place - 1] == value and candidate_rows[q, hit_place[place - 1]] > candidate_rows[q, c])
                ):
                    hits[place], hit_place[place] = hits[place - 1], hit_place[place - 1]
                    place -= 1
                hits[place], hit_place[place] = value, c
            for k in range(_HITS):
                if k < held:
                    scores[t, q, k] = hits[k]
                    relevant[t, q, k] = candidate_codes[q, hit_place[k]] == codes[q]
                else:
                    scores[t, q, k], relevant[t, q, k] = -np.inf, False
