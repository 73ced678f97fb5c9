"""The retriever: an index version in memory that ranks queries given as embeddings.

It knows neither models nor the protocol.  A gallery without approximate indexes is searched with all members at once
(:mod:`cbir.core.search.exact_search`); approximate indexes and fusion by rank go member by member
(:mod:`cbir.core.search.per_member_search`).

N rows, B queries, M members.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import Gallery, IndexVersion
from cbir.core.ensemble import choose_runtime
from cbir.core.errors import QueryError
from cbir.core.machine import brief, keep_compiled
from cbir.core.metric import Projection, expanded, unit_rows
from cbir.core.search.candidate_generation import CandidateGenerator, Kernel
from cbir.core.search.exact_search import ExactSearch
from cbir.core.search.matrices.gallery_matrix import GalleryMatrix, load_matrix
from cbir.core.search.nearest_rows import NearestRows
from cbir.core.search.per_member_search import PerMemberSearch
from cbir.core.vector_index import HalfVectors, VectorIndex
from cbir.core.vote import (
    Fusion,
    Heads,
    LabelVote,
    LinearHead,
    Ranker,
    Ranking,
    SearchSpec,
    VoteSettings,
    fused_scores,
    normalised_weights,
)

__all__ = ["Ranking", "Retriever", "SearchSpec"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

_BAD_WEIGHTS = "weights must be one finite number of at least 0 for each member"


class Retriever:
    """Ranks queries against one index version; implements :class:`cbir.core.search.Searcher`.  One caller at a time.

    Args:
        vectors: (N, d) projected float16 unit vectors of each member, of which large ones that are mapped from files
            stay mapped; or a matrix that holds them elsewhere.
        indexes: One a member, None where the search is exact.
        index_name: How candidates are found, in words for display.
        device: ``cpu`` or ``cuda``.
        heads: The linear heads of members that have one.
        kernel: What an exact search on a CPU runs on.
        nearest: What finds them, where ``vectors`` is a matrix that holds them elsewhere.
    """

    def __init__(
        self,
        gallery: Gallery,
        members: Sequence[str],
        vectors: Sequence[HalfVectors] | GalleryMatrix,
        projections: Sequence[Projection],
        vote: VoteSettings,
        indexes: Sequence[VectorIndex | None],
        index_name: str,
        device: str,
        heads: Mapping[str, LinearHead] | None = None,
        kernel: Kernel = "auto",
        nearest: NearestRows | None = None,
    ) -> None:
        keep_compiled()
        self.gallery, self.members, self.index_name = gallery, tuple(members), index_name
        self._matrix = load_matrix(vectors, device) if isinstance(vectors, Sequence) else vectors
        self._stops = self._matrix.stops
        self.dims = tuple(stop - start for start, stop in itertools.pairwise(self._stops))
        self.raw_dims = tuple(int(p.mean.shape[0]) for p in projections)
        self.weights = normalised_weights(np.array([vote.weights[m] for m in members], np.float32))
        self._projections, self._vote = projections, vote
        self._approximate = any(index is not None for index in indexes)
        self._bounds = np.array(self._stops)
        codes = gallery.label_codes
        by_member = [(heads or {}).get(name) for name in self.members]
        joined = Heads(by_member, self.dims) if any(by_member) else None
        self._labels = LabelVote(codes, len(gallery.labels), joined, vote)
        ranker = Ranker(codes, gallery.labels, vote)
        self._by_member = PerMemberSearch(self._matrix, indexes, ranker, self._labels, vote.label_share)
        self._nearest = nearest or CandidateGenerator(
            self._matrix, self.weights, "product" if self._approximate else kernel
        )
        self._fused = ExactSearch(gallery, self._nearest, self._labels, ranker, vote)

    @classmethod
    def load(
        cls, version: IndexVersion, device: str = "auto", index: str | None = None, kernel: Kernel = "auto"
    ) -> Retriever:
        """Load a version.

        Args:
            device: ``auto``, ``cpu`` or ``cuda``.
            index: ``exact`` ignores approximate indexes; None uses what the indexer built.
            kernel: What an exact search on a CPU runs on; ``auto`` chooses by measuring (:mod:`.kernels`).

        Raises:
            ArtifactError: A file is damaged.
            ConfigurationError: The device or an index's package is missing.
        """
        place = "cuda" if choose_runtime(device, "torch") == "torch-cuda" else "cpu"
        members = [m.name for m in version.manifest.ensemble.members]
        embeddings = [version.embeddings(m) for m in members]
        indexes: list[VectorIndex | None] = []
        names = [str(version.manifest.members[m]["index"]) for m in members]
        if index == "exact" or all(name == "exact" for name in names):
            names = ["exact"] * len(members)
            indexes = [None] * len(members)
        else:
            indexes = [version.vector_index(m, place, e) for m, e in zip(members, embeddings, strict=True)]
        projections = [version.projection(m) for m in members]
        label = names[0] if len(set(names)) == 1 else ", ".join(f"{m}={n}" for m, n in zip(members, names, strict=True))
        return cls(
            version.gallery, members, embeddings, projections, version.vote, indexes, label, place,
            version.heads(), kernel,
        )  # fmt: skip

    def project(self, raw: Mapping[str, Floats]) -> Floats:
        """Project raw embeddings.

        Args:
            raw: (B, raw_dim) by member.  A member that is left out gets zeros and does not count in the search.

        Returns:
            (B, sum of dims) float32, the members' unit vectors side by side.

        Raises:
            QueryError: An unknown member, another length, or numbers that are not finite.
        """
        if not raw:
            raise QueryError("the query holds no embedding", reason="EMPTY_QUERY")
        count = len(next(iter(raw.values())))
        result = np.zeros((count, self._stops[-1]), np.float32)
        for name, vectors in raw.items():
            if name not in self.members:
                raise QueryError(
                    f"the ensemble has no member {name!r}; members are {', '.join(self.members)}",
                    reason="UNKNOWN_MEMBER",
                    member=name,
                )
            m = self.members.index(name)
            if vectors.shape[1] != self.raw_dims[m]:
                raise QueryError(
                    f"the embedding of member {name!r} has {vectors.shape[1]} components; it must have "
                    f"{self.raw_dims[m]}",
                    reason="BAD_EMBEDDING",
                    member=name,
                )
            unit, usable = unit_rows(vectors)
            if not usable:
                raise QueryError(
                    f"the embedding of member {name!r} is zero or not finite", reason="BAD_EMBEDDING", member=name
                )
            result[:, self._stops[m] : self._stops[m + 1]] = self._projections[m].apply(unit)
        return result

    def vectors_of(self, rows: Sequence[int]) -> Floats:
        """The projected vectors of gallery rows, (B, sum of dims) float32."""
        return self._matrix.vectors_of(np.asarray(rows, np.int64))

    def search(self, queries: Floats, specs: Sequence[SearchSpec]) -> list[Ranking]:
        """Rank the gallery for a batch of queries.

        Args:
            queries: (B, sum of dims) from :meth:`project` or :meth:`vectors_of`.
            specs: B of them.

        Raises:
            QueryError: A limit or weight that cannot be met.
        """
        if not specs:
            return []
        queries = np.ascontiguousarray(queries, np.float32)
        weights = self._weights(queries, specs)
        heads = self._labels.head_probabilities(queries, weights)
        if self._vote.expansion_neighbours > 0:
            queries = self._expand(queries, weights, specs)
        if self._approximate or any(s.fusion is Fusion.RECIPROCAL_RANK for s in specs):
            said = [None] * len(specs) if heads is None else np.split(heads, len(specs))
            return [
                self._by_member.search(queries[i], weights[i], spec, spec.allowed(len(self.gallery)), said[i])
                for i, spec in enumerate(specs)
            ]
        return self._fused.search(queries, weights, specs, heads)

    def _weights(self, queries: Floats, specs: Sequence[SearchSpec]) -> Floats:
        """(B, M) weights that sum to 1 a query: its own or the usual ones, 0 for members without an embedding."""
        weights = np.empty((len(specs), len(self.members)), np.float32)
        for i, spec in enumerate(specs):
            if spec.limit < 1:
                raise QueryError(f"limit is {spec.limit}; it must be at least 1", reason="BAD_LIMIT")
            given = self.weights if spec.weights is None else np.asarray(spec.weights, np.float32)
            if given.shape != self.weights.shape:
                raise QueryError(_BAD_WEIGHTS, reason="BAD_WEIGHT")
            weights[i] = given
        if not (weights.min() >= 0 and weights.max() < np.inf):
            raise QueryError(_BAD_WEIGHTS, reason="BAD_WEIGHT")
        if not _normalise_weights(queries, self._bounds, weights):
            raise QueryError("no member has a positive weight in this query: raise one", reason="BAD_WEIGHT")
        return weights

    def _expand(self, queries: Floats, weights: Floats, specs: Sequence[SearchSpec]) -> Floats:
        """Query expansion: move every query towards its nearest images, except those excluded from its hits."""
        count = min(self._vote.expansion_neighbours, len(self.gallery))
        rows, fused = np.full((len(specs), count), -1, np.int64), np.zeros((len(specs), count), np.float32)
        if self._approximate:
            for i, (query, weight, spec) in enumerate(zip(queries, weights, specs, strict=True)):
                near, scores = self._by_member.nearest(query, weight, count + len(spec.exclude_rows))
                kept = np.flatnonzero(~np.isin(near, spec.exclude_rows))[:count]
                rows[i, : len(kept)], fused[i, : len(kept)] = near[kept], scores[kept]
        else:
            wanted = [count] * len(specs)
            found = self._nearest.find(queries, weights, wanted, wanted, [s.exclude_rows for s in specs])
            rows, fused = found.rows, fused_scores(found.similarities, weights)
        neighbours = self._matrix.vectors_of(np.maximum(rows, 0).ravel()).reshape(*rows.shape, -1)
        neighbours[rows < 0] = 0
        return expanded(queries, neighbours, fused, self._vote.expansion_exponent, self.dims)


@brief
def _normalise_weights(queries: Floats, bounds: Rows, weights: Floats) -> bool:
    """Scale each query's weights to sum 1, in place; return False where a query has no positive weight.

    A member without an embedding of the query (all zeros) gets weight 0, and the others share what it had.

    Args:
        bounds: (M + 1,) the columns where the members' parts of a query begin and end.
        weights: (B, M).
    """
    for b in range(weights.shape[0]):
        total = 0.0
        for m in range(weights.shape[1]):
            if not queries[b, bounds[m] : bounds[m + 1]].any():
                weights[b, m] = 0
            total += weights[b, m]
        if total <= 0:
            return False
        for m in range(weights.shape[1]):
            weights[b, m] /= total
    return True
