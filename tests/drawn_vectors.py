"""Drawn galleries of three members, queries for them, and the hits of brute force."""

from __future__ import annotations

import numpy as np

from cbir.core.metric import normalise
from cbir.core.search.candidate_generation import CandidateGenerator
from cbir.core.vote import fused_scores, top_places

__all__ = ["DIMS", "WEIGHTS", "N", "ask", "best", "draw", "exact", "hits"]

N, DIMS, WEIGHTS = 6000, (24, 16, 8), np.array([0.5, 0.3, 0.2], np.float32)


def draw(kind: str, count: int = N, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 60, count)
    parts = []
    for d in DIMS:
        part = rng.normal(size=(count, d))
        if kind == "clustered":
            # Components of falling variance, as trained projections have them.
            part = (rng.normal(size=(60, d))[codes] + 0.6 * part) * np.exp(-2 * np.arange(d) / d)
        parts.append(normalise(part).astype(np.float16))
    return parts


def ask(parts: list[np.ndarray], count: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(parts[0]), count)
    noisy = [normalise(p[rows].astype(np.float32) + 0.15 * rng.normal(size=(count, p.shape[1]))) for p in parts]
    return np.hstack(noisy).astype(np.float32)


def exact(parts: list[np.ndarray], queries: np.ndarray, weights: np.ndarray) -> np.ndarray:
    whole = np.hstack([p.astype(np.float64) for p in parts])
    return (queries * np.repeat(weights, [p.shape[1] for p in parts], axis=1)) @ whole.T


def hits(
    search: CandidateGenerator, queries: np.ndarray, weights: np.ndarray, limit: int = 10, **options
) -> list[list[int]]:
    count = len(queries)
    options = {"excluded": [()] * count, **options}
    found = search.find(queries, weights, [limit] * count, [max(32, limit)] * count, **options)
    scores = fused_scores(found.similarities, weights)
    best = top_places(scores, found.rows, np.full(count, limit))
    return [rows[order[order >= 0]].tolist() for rows, order in zip(found.rows, best, strict=True)]


def best(scores: np.ndarray, limit: int = 10) -> list[int]:
    order = np.argsort(-scores, kind="stable")[:limit]
    return order[np.isfinite(scores[order])].tolist()
