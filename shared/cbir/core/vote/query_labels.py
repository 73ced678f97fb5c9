"""What labels the queries of a batch are likely to have: by the nearest images, the heads and the class names.

B queries, C candidates a query, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import jit
from cbir.core.vote.label_vote import Heads
from cbir.core.vote.order import leading
from cbir.core.vote.ranking import SearchSpec
from cbir.core.vote.settings import VoteSettings

__all__ = ["LabelVote", "mixed", "neighbours_say"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


def neighbours_say(
    fused: Floats, rows: Rows, codes: NDArray[np.integer], neighbours: int, temperature: float, classes: int
) -> Floats:
    """P(label | query) by the labels of the ``neighbours`` best candidates, each weighing exp(score / ``temperature``).

    Args:
        fused: (B, C) scores.
        rows: (B, C) gallery rows, -1 where there is no candidate; ties go to the lower row.
        codes: (N,) label numbers of the gallery, negative where there is none; such candidates count among the
            ``neighbours`` but do not vote.

    Returns:
        (B, classes) whose rows sum to 1, or are zero where nobody votes.
    """
    result = np.zeros((len(rows), classes), np.float32)
    _count_votes(leading(fused, rows, np.full(len(rows), neighbours)), fused, rows, codes, temperature, result)
    return result


@jit
def _count_votes(
    places: Rows, fused: Floats, rows: Rows, codes: NDArray[np.integer], temperature: float, result: Floats
) -> None:
    for b in range(places.shape[0]):
        top, total = -np.inf, 0.0
        for k in range(places.shape[1]):
            c = places[b, k]
            if c < 0 or codes[rows[b, c]] < 0:
                continue
            if top == -np.inf:
                # The best come first; exponents are relative to the best that votes.
                top = np.float64(fused[b, c])
            vote = np.exp((fused[b, c] - top) / temperature)
            result[b, codes[rows[b, c]]] += vote
            total += vote
        if total > 0:
            for label in range(result.shape[1]):
                result[b, label] /= total


def mixed(opinions: Sequence[tuple[Floats | None, float | Floats]]) -> Floats | None:
    """The weighted mean of the opinions on each query; one that is absent leaves its share to the others.

    Where only those without a share have an opinion, they are heard, all alike.

    Args:
        opinions: (B, L) probabilities, None or a zero row where there is no opinion, each with its share: one number,
            or (B,).

    Returns:
        (B, L) with rows that sum to 1, or are zero where nobody has an opinion; None where nobody ever has.
    """
    given = [(said, share) for said, share in opinions if said is not None]
    if not given:
        return None
    said = np.array([one for one, _ in given])
    shares = np.empty(said.shape[:2], np.float32)
    for row, (_, share) in zip(shares, given, strict=True):
        row[:] = share
    result = np.zeros(said.shape[1:], np.float32)
    _mix(said, shares, result)
    return result


@jit
def _mix(said: Floats, shares: Floats, result: Floats) -> None:
    """The mean of (K, B, L) opinions by (K, B) shares, into (B, L)."""
    speaks = np.empty(len(said), np.bool_)
    for b in range(said.shape[1]):
        total = 0.0
        for k in range(len(said)):
            speaks[k] = said[k, b].any()
            if speaks[k]:
                total += shares[k, b]
        # Where nobody with a share speaks, whoever speaks at all is heard.
        alike = total <= 0
        if alike:
            total = np.float64(np.count_nonzero(speaks))
        for k in range(len(said)):
            if speaks[k]:
                share = (1.0 if alike else shares[k, b]) / total
                for label in range(said.shape[2]):
                    result[b, label] += said[k, b, label] * share


class LabelVote:
    """P(label | query) from the nearest images, the linear heads and the class names.

    Args:
        codes: (N,) label numbers of the gallery, -1 where there is none.
        classes: L; 0 in a gallery without labels.
        heads: Of the members, or None.
    """

    def __init__(self, codes: NDArray[np.integer], classes: int, heads: Heads | None, vote: VoteSettings) -> None:
        self._codes, self._classes, self._heads, self._vote = codes, classes, heads, vote

    def heads_say(self, queries: Floats, weights: Floats) -> Floats | None:
        """(B, L) by the linear heads on (B, D) queries, or None without heads."""
        if not self._classes or self._heads is None:
            return None
        return self._heads.probabilities(queries, weights, self._vote.head_temperature)

    def probabilities(
        self, rows: Rows, fused: Floats, heads: Floats | None, specs: Sequence[SearchSpec]
    ) -> Floats | None:
        """What all say together.

        Args:
            rows: (B, C) the nearest images, -1 where there are fewer.
            fused: (B, C) their scores.
            heads: From :meth:`heads_say`, before any expansion of the query.

        Returns:
            (B, L), a zero row where nobody has an opinion; None in a gallery without labels.
        """
        if not self._classes:
            return None
        vote = self._vote
        near = neighbours_say(fused, rows, self._codes, vote.neighbours, vote.temperature, self._classes)
        names, trust = self._names_say(specs)
        text_share = vote.text_share * trust
        return mixed([
            (heads, vote.head_share * (1 - text_share)),
            (names, text_share),
            (near, (1 - vote.head_share) * (1 - text_share)),
        ])  # fmt: skip

    def _names_say(self, specs: Sequence[SearchSpec]) -> tuple[Floats | None, Floats]:
        """(B, L) by the class names, a zero row where they have no say, and (B,) how far they are to be trusted."""
        trust = np.zeros(len(specs), np.float32)
        if self._vote.text_share <= 0 or all(spec.label_prior is None for spec in specs):
            return None, trust
        said = np.zeros((len(specs), self._classes), np.float32)
        for i, spec in enumerate(specs):
            if spec.label_prior is not None:
                trust[i] = spec.label_prior.sum()
                said[i] = spec.label_prior / np.maximum(trust[i], np.finfo(np.float32).tiny)
        return said, trust
