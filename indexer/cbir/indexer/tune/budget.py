"""How long the search for a vote goes on."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SearchBudget"]


@dataclass(frozen=True)
class SearchBudget:
    """Number of trials of one search, and its random seed."""

    trials: int = 600
    seed: int = 0
