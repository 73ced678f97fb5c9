"""The retriever: an index version in memory that ranks projected queries.  It knows no model and no protocol.

Exact galleries keep the members' projected vectors side by side: with the query's parts scaled by the weights, one
product, or one scan of compressed rows, gives the fused score of every image for any per-request weights
(:mod:`cbir.core.nearest`).  Approximate indexes propose candidates member by member (:mod:`cbir.core.member_search`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cbir.core.errors import QueryError
from cbir.core.expansion import expanded
from cbir.core.fusion import Fusion, fused_scores, normalised_weights
from cbir.core.gallery import Gallery
from cbir.core.gallery_matrix import load_matrix
from cbir.core.index_version import IndexVersion
from cbir.core.jit import jit, keep_compiled
from cbir.core.label_vote import Heads, LinearHead
from cbir.core.member_search import POOL, MemberSearch
from cbir.core.nearest import Candidates, NearestSearch, Strategy
from cbir.core.order import leading
from cbir.core.projection import Projection, make_unit
from cbir.core.query_labels import LabelVote
from cbir.core.ranking import Ranker, Ranking, SearchSpec
from cbir.core.runtime import choose_runtime
from cbir.core.vector_index import VectorIndex, index_file, load_index
from cbir.core.vote_settings import VoteSettings

__all__ = ["Ranking", "Retriever", "SearchSpec"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


class Retriever:
    """Ranks queries against one index version.  One caller at a time.

    Args:
        embeddings: (N, d) float16 unit vectors a member; arrays mapped from files stay so where they are large.
        indexes: One a member, None where the search is exact.
        device: ``cpu`` or ``cuda``.
        strategy: How an exact search finds its candidates.
    """

    def __init__(
        self,
        gallery: Gallery,
        members: Sequence[str],
        embeddings: Sequence[NDArray[np.float16]],
        projections: Sequence[Projection],
        vote: VoteSettings,
        indexes: Sequence[VectorIndex | None],
        index_name: str,
        device: str,
        heads: Mapping[str, LinearHead] | None = None,
        strategy: Strategy = "auto",
    ) -> None:
        keep_compiled()
        self.gallery, self.members, self.index_name = gallery, tuple(members), index_name
        self.dims = tuple(int(e.shape[1]) for e in embeddings)
        self.raw_dims = tuple(int(p.mean.shape[0]) for p in projections)
        self.weights = normalised_weights(np.array([vote.weights[m] for m in members], np.float32))
        self._projections, self._vote = projections, vote
        self._stops = tuple(itertools.accumulate(self.dims, initial=0))
        self._approximate = any(index is not None for index in indexes)
        self._bounds = np.array(self._stops)
        self._matrix = load_matrix(embeddings, device)
        codes = gallery.label_codes
        by_member = [(heads or {}).get(name) for name in self.members]
        joined = Heads(by_member, self.dims) if any(by_member) else None
        self._labels = LabelVote(codes, len(gallery.labels), joined, vote)
        self._ranker = Ranker(codes, gallery.labels, vote)
        self._rows_of = _rows_by_label(codes, len(gallery.labels))
        self._by_member = MemberSearch(self._matrix, indexes, self._ranker, self._labels, vote.label_share)
        self._nearest = NearestSearch(self._matrix, self.weights, "product" if self._approximate else strategy)

    @classmethod
    def load(
        cls, version: IndexVersion, device: str = "auto", index: str | None = None, strategy: Strategy = "auto"
    ) -> Retriever:
        """Load a version.

        Args:
            device: ``auto``, ``cpu`` or ``cuda``.
            index: ``exact`` ignores approximate indexes; None uses what the indexer built.
            strategy: How an exact search finds its candidates; ``auto`` chooses by the gallery's size and vectors.

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
            for member, name, vectors in zip(members, names, embeddings, strict=True):
                file = version.path / "members" / member / (index_file(name) or "-")
                indexes.append(load_index(name, file, vectors, place))
        projections = [version.projection(m) for m in members]
        label = names[0] if len(set(names)) == 1 else ", ".join(f"{m}={n}" for m, n in zip(members, names, strict=True))
        return cls(
            version.gallery, members, embeddings, projections, version.vote, indexes, label, place,
            version.heads(), strategy,
        )  # fmt: skip

    def project(self, raw: Mapping[str, Floats]) -> Floats:
        """Project raw embeddings.

        Args:
            raw: (B, raw_dim) by member; members that are left out get zeros and so have no say.

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
            unit = np.array(vectors, np.float32, order="C")
            if not make_unit(unit):
                raise QueryError(
                    f"the embedding of member {name!r} is zero or not finite", reason="BAD_EMBEDDING", member=name
                )
            result[:, self._stops[m] : self._stops[m + 1]] = self._projections[m].apply(unit)
        return result

    def stored(self, rows: Sequence[int]) -> Floats:
        """The projected vectors of gallery rows, (B, sum of dims) float32."""
        return self._matrix.stored(np.asarray(rows, np.int64))

    def search(self, queries: Floats, specs: Sequence[SearchSpec]) -> list[Ranking]:
        """Rank the gallery for a batch of queries.

        Args:
            queries: (B, sum of dims) from :meth:`project` or :meth:`stored`.
            specs: B of them.

        Raises:
            QueryError: A limit or weight that cannot be met.
        """
        if not specs:
            return []
        queries = np.ascontiguousarray(queries, np.float32)
        weights = self._weights(queries, specs)
        heads = self._labels.heads_say(queries, weights)
        if self._vote.expansion_neighbours > 0:
            queries = self._expand(queries, weights, specs)
        if self._approximate or any(s.fusion is Fusion.RECIPROCAL_RANK for s in specs):
            return [
                self._by_member.search(
                    queries[i], weights[i], spec, self._allowed(spec), None if heads is None else heads[i : i + 1]
                )
                for i, spec in enumerate(specs)
            ]
        return self._search_fused(queries, weights, specs, heads)

    def _weights(self, queries: Floats, specs: Sequence[SearchSpec]) -> Floats:
        """(B, M) that sum to 1."""
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
        if not _share_out(queries, self._bounds, weights):
            raise QueryError("no member has a positive weight in this query: raise one", reason="BAD_WEIGHT")
        return weights

    def _allowed(self, spec: SearchSpec) -> NDArray[np.bool_] | None:
        if not spec.exclude_rows:
            return spec.mask
        allowed = np.ones(len(self.gallery), bool) if spec.mask is None else spec.mask.copy()
        allowed[list(spec.exclude_rows)] = False
        return allowed

    def _expand(self, queries: Floats, weights: Floats, specs: Sequence[SearchSpec]) -> Floats:
        """Move every query towards its nearest images, those left out of its hits not among them."""
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
        neighbours = self._matrix.stored(np.maximum(rows, 0).ravel()).reshape(*rows.shape, -1)
        neighbours[rows < 0] = 0
        return expanded(queries, neighbours, fused, self._vote.expansion_exponent, self.dims)

    def _search_fused(
        self, queries: Floats, weights: Floats, specs: Sequence[SearchSpec], heads: Floats | None
    ) -> list[Ranking]:
        voters = self._vote.neighbours if self.gallery.labels else 0
        near = self._nearest.find(
            queries,
            weights,
            [voters if s.mask is not None else max(voters, s.limit) for s in specs],
            [max(voters, POOL if s.mask is not None else max(POOL, 4 * s.limit)) for s in specs],
            [s.exclude_rows for s in specs],
        )
        fused = fused_scores(near.similarities, weights)
        probabilities = self._labels.probabilities(near.rows, fused, heads, specs)
        candidates = self._filtered(near, queries, weights, specs)
        if probabilities is not None and self._vote.label_share > 0:
            candidates = self._with_likely_labels(candidates, queries, weights, specs, probabilities)
        return self._ranker.rank(candidates.rows, candidates.similarities, weights, specs, probabilities)

    def _filtered(self, near: Candidates, queries: Floats, weights: Floats, specs: Sequence[SearchSpec]) -> Candidates:
        """The candidates that may be hits: of queries with a filter, their own."""
        found = [near if s.mask is None else None for s in specs]
        if all(found):
            return near
        parts = []
        for i, spec in enumerate(specs):
            one = slice(i, i + 1)
            if spec.mask is None:
                parts.append(near.of(one))
            else:
                parts.append(
                    self._nearest.find(
                        queries[one], weights[one], [spec.limit], [max(POOL, 4 * spec.limit)], [spec.exclude_rows],
                        spec.mask,
                    )
                )  # fmt: skip
        return _stacked(parts)

    def _with_likely_labels(
        self,
        found: Candidates,
        queries: Floats,
        weights: Floats,
        specs: Sequence[SearchSpec],
        probabilities: Floats,
    ) -> Candidates:
        """Images of a likely label may rise from anywhere: add those that may be hits and are no candidates yet."""
        scores = fused_scores(found.similarities, weights) + self._ranker.bonus(found.rows, probabilities)
        limits = np.array([spec.limit for spec in specs])
        places = leading(scores, found.rows, limits)
        rising = np.empty(probabilities.shape, np.bool_)
        _reach(scores, places, limits, found.bound, probabilities, np.float32(self._vote.label_share), rising)
        if not rising.any():
            return found
        parts = []
        for i, spec in enumerate(specs):
            one = slice(i, i + 1)
            part = found.of(one)
            labels = np.flatnonzero(rising[i])
            if len(labels):
                rows = np.concatenate([self._rows_of[label] for label in labels.tolist()])
                allowed = self._allowed(spec)
                if allowed is not None:
                    rows = rows[allowed[rows]]
                rows = np.setdiff1d(rows, found.rows[i])[None]
                similarities = self._matrix.similarities(rows, queries[one])
                scores = fused_scores(similarities, weights[one])
                scores += self._ranker.bonus(rows, probabilities[one])
                best = leading(scores, rows, np.array([max(POOL, 4 * spec.limit)]))
                part = Candidates(
                    np.concatenate([part.rows, rows[:, best[0]]], axis=1),
                    np.concatenate([part.similarities, similarities[:, :, best[0]]], axis=2),
                    part.bound, part.level,
                )  # fmt: skip
            parts.append(part)
        return _stacked(parts)


@jit
def _share_out(queries: Floats, bounds: Rows, weights: Floats) -> bool:
    """Scale each query's weights to sum 1, in place; False where nobody has any.

    A member without an embedding of the query has no say: its weight goes to the others.
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


@jit
def _reach(
    scores: Floats,
    places: Rows,
    limits: Rows,
    bound: Floats,
    probabilities: Floats,
    share: np.float32,
    rising: NDArray[np.bool_],
) -> None:
    """(B, L) whether an image that is no candidate could be a hit by its label: it scores the bound at most, and what
    the label adds."""
    for b in range(len(rising)):
        last = np.float32(-np.inf)
        if limits[b] <= places.shape[1] and places[b, limits[b] - 1] >= 0:
            last = scores[b, places[b, limits[b] - 1]]
        for label in range(rising.shape[1]):
            rising[b, label] = bound[b] > -np.inf and bound[b] + share * probabilities[b, label] >= last


_BAD_WEIGHTS = "weights must be one finite number of at least 0 for each member"


def _rows_by_label(codes: NDArray[np.integer], classes: int) -> list[Rows]:
    """The rows of each label, rising."""
    order = np.argsort(codes, kind="stable").astype(np.int64)
    return np.split(order, np.searchsorted(codes[order], np.arange(classes + 1)))[1:-1] if classes else []


def _stacked(parts: Sequence[Candidates]) -> Candidates:
    """One query's candidates below the other's, filled up with rows of -1."""
    width = max(part.rows.shape[1] for part in parts)
    rows = np.full((len(parts), width), -1, np.int64)
    similarities = np.zeros((len(parts), parts[0].similarities.shape[1], width), np.float32)
    for i, part in enumerate(parts):
        rows[i, : part.rows.shape[1]] = part.rows[0]
        similarities[i, :, : part.rows.shape[1]] = part.similarities[0]
    bound, level = (np.concatenate(column) for column in zip(*((p.bound, p.level) for p in parts), strict=True))
    return Candidates(rows, similarities, bound, level)
