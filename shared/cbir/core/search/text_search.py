"""Text search: a gallery ranked by words, in the embedding space that images and words share.

This is the space of the members' own embeddings, not the index's projected one: the projection is fitted to images,
and the words that describe them lie in another region of the space (the modality gap), where it means nothing.

N rows, B queries, M members of which T understand words, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from cbir.core.artifacts import Gallery, IndexVersion
from cbir.core.ensemble import choose_runtime
from cbir.core.errors import QueryError
from cbir.core.search.zero_shot import names_trust, zero_shot_probabilities
from cbir.core.vector_index import HalfVectors
from cbir.core.vote import Fusion, Ranking, SearchSpec, normalised_weights, rank_contributions, vote_contributions

__all__ = ["JointSpace"]

Floats = NDArray[np.float32]

#: On a CPU, galleries whose float32 copy takes at most this many bytes are converted when words first ask for them.
FLOAT32_BYTES = 4 * 2**30
_BLOCK_ROWS = 65536


class JointSpace:
    """The raw embeddings of a gallery by the T members that understand words.

    A point of the space is these members' unit vectors side by side; zeros for a member that is not to count.

    Args:
        members: All M names of the ensemble, in its order.
        vectors: (N, D) unit vectors by member with a text tower.
        classes: (C, D) unit vectors of the labels' names, and the logit scale, by member; members may be missing.
        trust: 0..1 by member, from :func:`names_trust`; 1 for members that are missing.
    """

    def __init__(
        self,
        gallery: Gallery,
        members: Sequence[str],
        vectors: Mapping[str, HalfVectors],
        classes: Mapping[str, tuple[Floats, float]],
        device: str,
        trust: Mapping[str, float] | None = None,
    ) -> None:
        self.members = tuple(name for name in members if name in vectors)
        self.dims = tuple(int(vectors[name].shape[1]) for name in self.members)
        self._gallery, self._vectors, self._classes, self._device = gallery, vectors, classes, device
        self._trust = [(trust or {}).get(name, 1.0) for name in self.members]
        self._places = [list(members).index(name) for name in self.members]
        self._width = len(members)
        self._stops = np.cumsum((0, *self.dims))

    @classmethod
    def load(cls, version: IndexVersion, device: str = "auto") -> JointSpace | None:
        """Load from an index version; None where no member understands words.

        Args:
            device: ``auto``, ``cpu`` or ``cuda``.

        Raises:
            ArtifactError: A file is damaged.
            ConfigurationError: The device is not there.
        """
        names = [member.name for member in version.manifest.ensemble.members]
        vectors = {name: version.joint(name) for name in names if version.manifest.members[name].get("text")}
        if not vectors:
            return None
        classes = {name: found for name in vectors if (found := version.classes(name)) is not None}
        place = "cuda" if choose_runtime(device, "torch") == "torch-cuda" else "cpu"
        facts, codes = version.manifest.members, version.gallery.label_codes
        trust = {name: names_trust(float(facts[name]["zero_shot_accuracy"]), codes) for name in classes}
        return cls(version.gallery, names, vectors, classes, place, trust)

    @property
    def classifies(self) -> bool:
        """Whether some member has embeddings of the labels' names, so that :meth:`label_probabilities` has results."""
        return bool(self._classes)

    def side_by_side(self, blocks: Mapping[str, Floats], count: int) -> Floats:
        """Normalise the members' (B, dim) vectors and put them side by side; members not given get zeros.

        Returns:
            (B, sum of dims) float32.
        """
        points = np.zeros((count, int(self._stops[-1])), np.float32)
        for name, start, stop in zip(self.members, self._stops, self._stops[1:], strict=False):
            if name in blocks:
                points[:, start:stop] = blocks[name] / np.linalg.norm(blocks[name], axis=1, keepdims=True)
        return points

    def vectors_of(self, rows: Sequence[int]) -> Floats:
        """The points of gallery rows, (B, sum of dims) float32."""
        return self.side_by_side(
            {name: np.asarray(self._vectors[name][list(rows)], np.float32) for name in self.members}, len(rows)
        )

    def label_probabilities(self, points: Floats, weights: Floats) -> list[Floats | None]:
        """P(label | words or image): the mean of the members' zero-shot probabilities, by weight.

        Args:
            points: (B, sum of dims).
            weights: (B, M) non-negative.

        Returns:
            For each point (C,) probabilities in the order of ``gallery.labels``; None where no member with a positive
            weight has embeddings of the names.
        """
        return self._mean_probabilities(points, weights, [1.0] * len(self.members))

    def label_priors(self, points: Floats, weights: Floats) -> list[Floats | None]:
        """Like :meth:`label_probabilities`, but a member counts by its weight times the trust in it.

        Returns:
            For each point (C,) probabilities, scaled by trust: they sum to the trust in the members, averaged by that
            weight.  None where no member counts.
        """
        return self._mean_probabilities(points, weights, self._trust)

    def _mean_probabilities(self, points: Floats, weights: Floats, trust: Sequence[float]) -> list[Floats | None]:
        total = np.zeros(len(points), np.float32)
        fused = np.zeros((len(points), len(self._gallery.labels)), np.float32)
        for t, name in enumerate(self.members):
            if name not in self._classes:
                continue
            classes, scale = self._classes[name]
            block = points[:, self._stops[t] : self._stops[t + 1]]
            weight = trust[t] * weights[:, self._places[t]] * block.any(axis=1)
            fused += (trust[t] * weight)[:, None] * zero_shot_probabilities(block, classes, scale)
            total += weight
        return [row / share if share > 0 else None for row, share in zip(fused, total, strict=True)]

    def search(self, words: Floats, weights: Floats, spec: SearchSpec) -> Ranking:
        """Rank the gallery by words.

        An image's score is the weighted mean of the members' cosines between words and image; ``spec.weights`` is
        ignored.  Members without a text tower get similarity, contribution and rank 0.  ``scores`` is the fused score
        without calibration, 0 where it is negative; good matches of real models have cosines of 0.1 to 0.4.

        Args:
            words: (sum of dims,) the point of the query.
            weights: (M,) non-negative.

        Returns:
            The hits, and the likeliest labels of the words.

        Raises:
            QueryError: No member that understands words has a positive weight.
        """
        counts = [words[start:stop].any() for start, stop in zip(self._stops, self._stops[1:], strict=False)]
        own = np.asarray(weights[self._places], np.float32) * np.array(counts, np.float32)
        if not own.any():
            raise QueryError(
                "no member that understands words has a positive weight in this query: raise that of "
                + " or ".join(name for name, known in zip(self.members, counts, strict=True) if known),
                reason="BAD_WEIGHT",
            )
        own = normalised_weights(own)
        rows = self._allowed(spec)
        similarities = self._similarities(words)[rows]
        if spec.fusion is Fusion.RECIPROCAL_RANK:
            contributions = rank_contributions(_ranks(similarities, similarities), own)
        else:
            contributions = vote_contributions(similarities, own)
        fused = contributions.sum(axis=1)
        best = _best(fused, spec.limit)
        if spec.min_score is not None:
            best = best[np.clip(fused[best], 0, 1) >= spec.min_score]
        ranks = _ranks(similarities, similarities[best])
        return Ranking(
            rows[best], np.clip(fused[best], 0, 1), fused[best], self._among_all(similarities[best]),
            self._among_all(ranks), self._among_all(contributions[best]), np.zeros(len(best), np.float32),
            self._name_labels(self.label_probabilities(words[None], weights[None])[0]),
        )  # fmt: skip

    def _name_labels(self, probabilities: Floats | None, most: int = 5) -> list[tuple[str, float]]:
        if probabilities is None:
            return []
        best = np.argsort(-probabilities, kind="stable")[:most]
        return [(self._gallery.labels[i], float(probabilities[i])) for i in best if probabilities[i] > 0.005]

    def _allowed(self, spec: SearchSpec) -> NDArray[np.int64]:
        allowed = np.ones(len(self._gallery), bool) if spec.mask is None else spec.mask.copy()
        allowed[list(spec.exclude_rows)] = False
        return np.flatnonzero(allowed)

    def _similarities(self, words: Floats) -> Floats:
        """(N, T) cosines with every image."""
        columns = []
        for matrix, start, stop in zip(self._matrices, self._stops, self._stops[1:], strict=False):
            query = torch.from_numpy(words[start:stop].copy()).to(self._device)
            if matrix.dtype == torch.float32:
                columns.append(matrix @ query)
            elif self._device == "cuda":
                columns.append((matrix @ query.half()).float())
            else:
                columns.append(torch.cat([block.float() @ query for block in torch.split(matrix, _BLOCK_ROWS)]))
        return cast(Floats, torch.stack(columns, dim=1).cpu().numpy())

    @cached_property
    def _matrices(self) -> list[torch.Tensor]:
        # Loaded by the first query in words: a gallery that gets none saves the memory.
        half = self._device == "cuda" or len(self._gallery) * int(self._stops[-1]) * 4 > FLOAT32_BYTES
        kind = np.float16 if half else np.float32
        return [torch.from_numpy(np.array(self._vectors[name], kind)).to(self._device) for name in self.members]

    def _among_all(self, part: NDArray[Any]) -> NDArray[Any]:
        """(K, M) from (K, T): columns of 0 for members that do not understand words."""
        whole = np.zeros((len(part), self._width), part.dtype)
        whole[:, self._places] = part
        return whole


def _best(fused: Floats, limit: int) -> NDArray[np.int64]:
    """The positions of the ``limit`` highest values, best first; of equal ones the earlier comes first."""
    if len(fused) > limit:
        least = -np.partition(-fused, limit - 1)[limit - 1]
        candidates = np.flatnonzero(fused >= least)
    else:
        candidates = np.arange(len(fused))
    return candidates[np.argsort(-fused[candidates], kind="stable")[:limit]]


def _ranks(similarities: Floats, hits: Floats) -> NDArray[np.int64]:
    """The rank (from 1) of (K, T) hits among (C, T) similarities, member by member; equal ones share the best."""
    columns = [np.sort(column) for column in similarities.T]
    ranks = [1 + len(c) - np.searchsorted(c, of, side="right") for c, of in zip(columns, hits.T, strict=True)]
    return np.stack(ranks, axis=1).astype(np.int64)
