"""Votes of labels, one query at a time, as plainly as can be: what the compiled loops must agree with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["mixed_probabilities", "neighbour_probabilities"]


def neighbour_probabilities(
    fused: np.ndarray, codes: np.ndarray, neighbours: int, temperature: float, classes: int
) -> np.ndarray:
    """(classes,) by the ``neighbours`` best of (R,) scored candidates, ties to the first; codes below 0 do not vote."""
    result = np.zeros(classes)
    best = np.argsort(-fused, kind="stable")[:neighbours]
    best = best[codes[best] >= 0]
    for place in best:
        result[codes[place]] += np.exp((float(fused[place]) - float(fused[best].max())) / temperature)
    return result / result.sum() if len(best) else result


def mixed_probabilities(opinions: Mapping[str, np.ndarray | None], shares: Mapping[str, float]) -> np.ndarray | None:
    """The weighted mean of the (C,) opinions that there are; None where there is none."""
    there = {name: said for name, said in opinions.items() if said is not None and said.any()}
    voices = {name: said for name, said in there.items() if shares[name] > 0} or there
    if not voices:
        return None
    own = {name: shares[name] or 1.0 for name in voices}
    return sum(own[name] * said for name, said in voices.items()) / sum(own.values())
