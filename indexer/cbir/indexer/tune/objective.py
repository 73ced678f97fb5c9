"""MAP@10 of a vote on a score table: what tuning maximises.  One pass over a few arrays, on their device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cbir.indexer.tune.score_table import ScoreTable

__all__ = ["Trial", "average_precisions", "top_hits"]

_MOST_NEIGHBOURS = 64


@dataclass(frozen=True)
class Trial:
    """A vote to be measured; the names are those of :class:`cbir.core.vote.settings.VoteSettings`.

    Attributes:
        weights: One a member.
        dims: One a member.
    """

    weights: tuple[float, ...]
    dims: tuple[int, ...]
    neighbours: int = 10
    temperature: float = 0.05
    label_share: float = 0.0
    head_share: float = 0.5
    head_temperature: float = 0.1
    text_share: float = 0.0


def average_precisions(table: ScoreTable, trial: Trial) -> NDArray[np.float64]:
    """(Q,) AP@10 of every query (all have R > 0)."""
    _, relevant = top_hits(table, trial)
    ranks = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    precision = relevant.cumsum(dim=1) / ranks
    ap = (precision * relevant).sum(dim=1) / table.totals.clamp(max=10)
    return np.asarray(ap.cpu().numpy(), dtype=np.float64)


def top_hits(table: ScoreTable, trial: Trial, count: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (before calibration) and relevance of each query's best hits: (Q, count) float and bool."""
    fused = _weighted([table.similarities[key] for key in enumerate(trial.dims)], trial.weights)
    fused = fused.masked_fill(~table.valid, -torch.inf)
    if trial.label_share > 0 and table.classes:
        known = (table.candidate_codes >= 0) & table.valid
        bonus = _probabilities(table, trial, fused).gather(1, table.candidate_codes.clamp(min=0))
        fused = fused + trial.label_share * bonus * known
    # A stable sort keeps row order, and so id order, among equals.
    order = torch.argsort(fused, dim=1, descending=True, stable=True)[:, :count]
    scores = fused.gather(1, order)
    relevant = (table.candidate_codes.gather(1, order) == table.codes[:, None]) & scores.isfinite()
    return scores, relevant


def _weighted(parts: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    total = sum(weights)
    result = torch.zeros_like(parts[0])
    for part, weight in zip(parts, weights, strict=True):
        if weight > 0:
            result.add_(part, alpha=weight / total)
    return result


def _probabilities(table: ScoreTable, trial: Trial, fused: torch.Tensor) -> torch.Tensor:
    """(Q, L) P(label | query), as :mod:`cbir.core.vote.label_vote` has it."""
    count = min(trial.neighbours, _MOST_NEIGHBOURS, fused.shape[1])
    best = torch.topk(fused, count, dim=1)
    codes = table.candidate_codes.gather(1, best.indices)
    votes = torch.exp((best.values - best.values[:, :1]) / trial.temperature) * (codes >= 0) * best.values.isfinite()
    near = torch.zeros(len(table), table.classes, device=fused.device, dtype=fused.dtype)
    near.scatter_add_(1, codes.clamp(min=0), votes)
    near /= near.sum(dim=1, keepdim=True).clamp(min=1e-12)
    # Where no neighbour has a label, the heads alone speak.
    labelled = near.any(dim=1, keepdim=True)
    if table.heads and trial.head_share > 0:
        scores = _weighted([table.heads[key] for key in enumerate(trial.dims)], trial.weights)
        heads = torch.softmax(scores / trial.head_temperature, dim=1)
        share = torch.where(labelled, trial.head_share, 1.0)
        near = share * heads + (1 - share) * near
    if not table.names or trial.text_share <= 0:
        return near
    names, total = torch.zeros_like(near), torch.zeros_like(near[:, :1])
    for m, said in table.names.items():
        weight = trial.weights[m] * said.sum(dim=1, keepdim=True)
        names += weight * said
        total += weight
    names /= total.clamp(min=1e-12)
    mixed = trial.text_share * names + (1 - trial.text_share * names.sum(dim=1, keepdim=True)) * near
    return mixed / mixed.sum(dim=1, keepdim=True).clamp(min=1e-12)
