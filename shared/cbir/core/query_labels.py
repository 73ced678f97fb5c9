"""What labels the queries of a batch are likely to have: :mod:`cbir.core.label_vote` for many queries at once.

B queries, C candidates a query, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cbir.core.label_vote import LinearHead, head_probabilities
from cbir.core.ranking import SearchSpec, best_first
from cbir.core.vote_settings import VoteSettings

__all__ = ["LabelVote", "mixed", "neighbours_say"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

_HUGE, _TINY = np.finfo(np.float32).max, np.finfo(np.float32).tiny


def neighbours_say(
    fused: Floats, rows: Rows, codes: NDArray[np.integer], neighbours: int, temperature: float, classes: int
) -> Floats:
    """:func:`cbir.core.label_vote.neighbour_probabilities` for a batch.

    Args:
        fused: (B, C) scores.
        rows: (B, C) gallery rows, -1 where there is no candidate; ties go to the lower row.
        codes: (B, C) label numbers, negative where there is none; such candidates count among the ``neighbours`` but
            do not vote.

    Returns:
        (B, classes) whose rows sum to 1, or are zero where nobody votes.
    """
    best = best_first(fused, rows)[:, :neighbours]
    line = np.arange(len(fused))[:, None]
    scores, near, rows = fused[line, best], codes[line, best], rows[line, best]
    voters = (near >= 0) & (rows >= 0)
    scores = np.where(voters, scores, -np.inf)
    # Exponents are relative to the best, which is any number where nobody votes.
    top = np.maximum(scores.max(axis=1, keepdims=True, initial=-np.inf), -_HUGE)
    votes = np.exp((scores - top) / temperature)
    votes /= np.maximum(votes.sum(axis=1, keepdims=True), _TINY)
    places = line * classes + np.maximum(near, 0)
    totals = np.bincount(places.ravel(), votes.ravel(), minlength=len(fused) * classes)
    return totals.reshape(len(fused), classes).astype(np.float32)


def mixed(opinions: Sequence[tuple[Floats | None, float | Floats]]) -> Floats | None:
    """:func:`cbir.core.label_vote.mixed_probabilities` for a batch: the weighted mean of those that have an opinion.

    Args:
        opinions: (B, L) probabilities, None or a zero row where there is no opinion, each with its share: one number,
            or (B,).

    Returns:
        (B, L) with rows that sum to 1, or are zero where nobody has an opinion; None where nobody ever has.
    """
    given = [(said, share) for said, share in opinions if said is not None]
    if not given:
        return None
    present = np.stack([said.any(axis=1) for said, _ in given])
    shares = present * np.stack([np.broadcast_to(np.float32(share), present.shape[1:]) for _, share in given])
    # Where nobody with a share speaks, whoever speaks at all is heard.
    shares = np.where(shares.any(axis=0), shares, present)
    shares = shares / np.maximum(shares.sum(axis=0), _TINY)
    total = given[0][0] * shares[0][:, None]
    for (said, _), share in zip(given[1:], shares[1:], strict=True):
        total += said * share[:, None]
    return np.asarray(total, dtype=np.float32)


class LabelVote:
    """P(label | query) from the nearest images, the linear heads and the class names.

    Args:
        codes: (N,) label numbers of the gallery, -1 where there is none.
        classes: L; 0 in a gallery without labels.
        heads: One a member, None where it has none.
    """

    def __init__(
        self, codes: NDArray[np.integer], classes: int, heads: Sequence[LinearHead | None], vote: VoteSettings
    ) -> None:
        self._codes, self._classes, self._heads, self._vote = codes, classes, heads, vote

    def heads_say(self, parts: Sequence[Floats], weights: Floats) -> Floats | None:
        """(B, L) by the linear heads on the members' (B, d) parts of the queries, or None without heads."""
        if not self._classes or not any(self._heads):
            return None
        return head_probabilities(parts, self._heads, weights, self._vote.head_temperature)

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
        near = neighbours_say(fused, rows, self._codes[rows], vote.neighbours, vote.temperature, self._classes)
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
                said[i] = spec.label_prior / np.maximum(trust[i], _TINY)
        return said, trust
