"""The retriever: an index version in memory that ranks projected queries.  It knows no model and no protocol.

Exact galleries keep the members' projected vectors side by side as one matrix: with the query's parts scaled by the
weights, one product gives the fused score of every image for any per-request weights.  Approximate indexes propose
candidates member by member; the union is rescored with every member, and the search goes deeper until no image that
was not proposed could still enter the answer (Fagin's threshold argument) or a bound is reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from cbir.core.calibration import probability_of_relevance
from cbir.core.errors import QueryError
from cbir.core.expansion import expanded
from cbir.core.fusion import (
    Fusion,
    member_ranks,
    normalised_weights,
    rank_contributions,
    vote_contributions,
)
from cbir.core.gallery import Gallery
from cbir.core.label_vote import LinearHead, head_probabilities, mixed_probabilities, neighbour_probabilities
from cbir.core.projection import Projection
from cbir.core.runtime import choose_runtime
from cbir.core.store import IndexVersion, VoteSettings
from cbir.core.vector_index import VectorIndex, index_file, load_index

__all__ = ["Ranking", "Retriever", "SearchSpec"]

Floats = NDArray[np.float32]

#: Candidates that are rescored by every member, beyond those that are asked for.
POOL = 128
#: Deepest candidate list asked of an approximate index.
DEEPEST = 4096
#: Float32 matrices up to this many bytes are kept as they are on a CPU; larger ones stay float16 and are widened in
#: blocks, as CPUs without AVX-512 multiply half precision ten times more slowly.
FLOAT32_BYTES = 4 * 2**30
_BLOCK_ROWS = 65536


@dataclass(frozen=True)
class SearchSpec:
    """How one query is to be answered.

    Attributes:
        weights: (M,) non-negative, or None for the index's own.
        mask: (N,) images that may be hits, or None for all.
        exclude_rows: Rows that may not be hits.
        min_score: Hits with a lower (calibrated) score are left out.
        label_prior: (C,) P(label | query) from elsewhere (class names), summing to how far it is to be trusted, 0..1;
            or None.
    """

    limit: int = 10
    weights: Floats | None = None
    fusion: Fusion = Fusion.WEIGHTED_VOTE
    mask: NDArray[np.bool_] | None = None
    exclude_rows: tuple[int, ...] = ()
    min_score: float | None = None
    label_prior: Floats | None = None


@dataclass(frozen=True)
class Ranking:
    """The hits of one query, best first (K hits, M members).

    Attributes:
        rows: (K,) gallery rows.
        scores: (K,) in 0..1, falling with the rank.
        fused: (K,) sum of a row of ``contributions`` plus ``label_contributions``.
        similarities: (K, M) cosines.
        ranks: (K, M) each member's own rank among the candidates that were scored, from 1.
        labels: The likeliest classes and their probabilities, best first.
    """

    rows: NDArray[np.int64]
    scores: Floats
    fused: Floats
    similarities: Floats
    ranks: NDArray[np.int64]
    contributions: Floats
    label_contributions: Floats
    labels: list[tuple[str, float]] = field(default_factory=list)


class Retriever:
    """Ranks queries against one index version.  One caller at a time."""

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
    ) -> None:
        self.gallery, self.members, self.index_name = gallery, tuple(members), index_name
        self.dims = tuple(int(e.shape[1]) for e in embeddings)
        self.raw_dims = tuple(int(p.mean.shape[0]) for p in projections)
        self.weights = normalised_weights(np.array([vote.weights[m] for m in members], np.float32))
        self._projections, self._vote, self._indexes = projections, vote, indexes
        self._heads = [(heads or {}).get(name) for name in self.members]
        self._stops = np.cumsum((0, *self.dims))
        self._device = device
        self._approximate = any(index is not None for index in indexes)
        self._matrix = self._load_matrix(embeddings)
        self._codes = torch.from_numpy(gallery.label_codes.astype(np.int64)).to(device)

    @classmethod
    def load(cls, version: IndexVersion, device: str = "auto", index: str | None = None) -> Retriever:
        """Load a version.

        Args:
            device: ``auto``, ``cpu`` or ``cuda``.
            index: ``exact`` ignores approximate indexes; None uses what the indexer built.

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
            version.heads(),
        )  # fmt: skip

    def _load_matrix(self, embeddings: Sequence[NDArray[np.float16]]) -> torch.Tensor:
        count, width = len(self.gallery), int(self._stops[-1])
        half = self._device == "cuda" or count * width * 4 > FLOAT32_BYTES
        matrix = torch.empty((count, width), dtype=torch.float16 if half else torch.float32)
        for start, stop, part in zip(self._stops, self._stops[1:], embeddings, strict=False):
            for row in range(0, count, _BLOCK_ROWS):
                block = np.array(part[row : row + _BLOCK_ROWS])
                matrix[row : row + _BLOCK_ROWS, start:stop] = torch.from_numpy(block)
        return matrix.to(self._device)

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
        result = np.zeros((count, int(self._stops[-1])), np.float32)
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
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            if not np.isfinite(norms).all() or (norms == 0).any():
                raise QueryError(
                    f"the embedding of member {name!r} is zero or not finite", reason="BAD_EMBEDDING", member=name
                )
            unit = np.asarray(vectors / norms, dtype=np.float32)
            result[:, self._stops[m] : self._stops[m + 1]] = self._projections[m].apply(unit)
        return result

    def stored(self, rows: Sequence[int]) -> Floats:
        """The projected vectors of gallery rows, (B, sum of dims) float32."""
        picked: Floats = self._matrix[torch.as_tensor(list(rows), device=self._device)].float().cpu().numpy()
        return picked

    def search(self, queries: Floats, specs: Sequence[SearchSpec]) -> list[Ranking]:
        """Rank the gallery for a batch of queries.

        Args:
            queries: (B, sum of dims) from :meth:`project` or :meth:`stored`.
            specs: B of them.

        Raises:
            QueryError: A limit or weight that cannot be met.
        """
        weights = np.stack([self._weights(spec, query) for spec, query in zip(specs, queries, strict=True)])
        heads = self._head_vote(queries, weights)
        with torch.inference_mode():
            if self._vote.expansion_neighbours > 0:
                queries = self._expand(queries, weights, specs)
            if self._approximate or any(s.fusion is Fusion.RECIPROCAL_RANK for s in specs):
                return [self._search_by_member(*parts) for parts in zip(queries, weights, specs, heads, strict=True)]
            return self._search_fused(queries, weights, specs, heads)

    def _head_vote(self, queries: Floats, weights: Floats) -> Sequence[Floats | None]:
        """For each query (C,) what the linear heads say, or None."""
        if not self.gallery.labels or not any(self._heads):
            return [None] * len(queries)
        parts = np.split(queries, self._stops[1:-1], axis=1)
        said = head_probabilities(parts, self._heads, weights, self._vote.head_temperature)
        return [None] * len(queries) if said is None else list(said)

    def _expand(self, queries: Floats, weights: Floats, specs: Sequence[SearchSpec]) -> Floats:
        """Move every query towards its nearest images, those left out of its hits not among them."""
        count = self._vote.expansion_neighbours
        most = min(len(self.gallery), count + max(len(s.exclude_rows) for s in specs))
        if self._approximate:
            near = [self._nearest_proposed(q, w, most) for q, w in zip(queries, weights, strict=True)]
        else:
            scores = self._product(torch.from_numpy(queries * np.repeat(weights, self.dims, axis=1)).to(self._device))
            near = list(torch.topk(scores, most).indices.cpu().numpy())
        moved = []
        for rows, query, weight, spec in zip(near, queries, weights, specs, strict=True):
            kept = rows[~np.isin(rows, spec.exclude_rows)][:count]
            fused = self._similarities(kept, query) @ weight
            moved.append(expanded(query, self.stored(kept.tolist()), fused, self._vote.expansion_exponent, self.dims))
        return np.stack(moved)

    def _nearest_proposed(self, query: Floats, weights: Floats, count: int) -> NDArray[np.int64]:
        depth = min(len(self.gallery), max(POOL, count))
        rows = np.unique(np.concatenate([self._propose(m, query, depth)[0] for m in np.flatnonzero(weights).tolist()]))
        fused = self._similarities(rows, query) @ weights
        return np.asarray(rows[np.argsort(-fused, kind="stable")[:count]], dtype=np.int64)

    def _weights(self, spec: SearchSpec, query: Floats) -> Floats:
        if spec.limit < 1:
            raise QueryError(f"limit is {spec.limit}; it must be at least 1", reason="BAD_LIMIT")
        weights = self.weights if spec.weights is None else np.asarray(spec.weights, np.float32)
        if weights.shape != (len(self.members),) or not np.isfinite(weights).all() or (weights < 0).any():
            raise QueryError("weights must be one finite number of at least 0 for each member", reason="BAD_WEIGHT")
        # A member without an embedding of this query has no say: its weight goes to the others.
        has_say = [bool(query[a:b].any()) for a, b in zip(self._stops, self._stops[1:], strict=False)]
        weights = weights * np.array(has_say, np.float32)
        if not weights.any():
            raise QueryError("no member has a positive weight in this query: raise one", reason="BAD_WEIGHT")
        return normalised_weights(weights)

    # Exact: one product for the whole batch.

    def _search_fused(
        self, queries: Floats, weights: Floats, specs: Sequence[SearchSpec], heads: Sequence[Floats | None]
    ) -> list[Ranking]:
        scale = np.repeat(weights, self.dims, axis=1)
        scores = self._product(torch.from_numpy(queries * scale).to(self._device))
        count = len(self.gallery)
        voting = self._vote.label_share > 0 and bool(self.gallery.labels)
        rankings = []
        for i, spec in enumerate(specs):
            column = scores[i]
            allowed = self._allowed(spec)
            if allowed is not None:
                column = column.masked_fill(~torch.from_numpy(allowed).to(self._device), -torch.inf)
            possible = count if allowed is None else int(allowed.sum())
            pool = min(possible, max(POOL, 4 * spec.limit))
            rows = torch.topk(column, pool).indices
            nearest = torch.topk(scores[i], min(count, self._vote.neighbours + len(spec.exclude_rows))).indices
            probabilities = self._label_vote(nearest.cpu().numpy(), queries[i], weights[i], spec, heads[i])
            if voting and probabilities is not None:
                # Images of a likely label may rise from anywhere in the gallery.
                bonus = torch.from_numpy(np.append(probabilities, np.float32(0))).to(self._device)
                raised = column + self._vote.label_share * bonus[self._codes]
                rows = torch.unique(torch.cat([rows, torch.topk(raised, pool).indices]))
            ranking = self._rank(rows.cpu().numpy(), queries[i], weights[i], spec, probabilities)
            rankings.append(_at_least(ranking, spec.min_score))
        return rankings

    def _product(self, queries: torch.Tensor) -> torch.Tensor:
        """(B, N) scores."""
        if self._matrix.dtype == torch.float32:
            return queries @ self._matrix.T
        if self._device == "cuda":
            return (queries.half() @ self._matrix.T).float()
        parts = [queries @ block.float().T for block in torch.split(self._matrix, _BLOCK_ROWS)]
        return torch.cat(parts, dim=1)

    def _allowed(self, spec: SearchSpec) -> NDArray[np.bool_] | None:
        if not spec.exclude_rows:
            return spec.mask
        allowed = np.ones(len(self.gallery), bool) if spec.mask is None else spec.mask.copy()
        allowed[list(spec.exclude_rows)] = False
        return allowed

    # Approximate, or by rank: members propose, everybody rescores.

    def _search_by_member(self, query: Floats, weights: Floats, spec: SearchSpec, heads: Floats | None) -> Ranking:
        allowed = self._allowed(spec)
        count = len(self.gallery)
        possible = count if allowed is None else int(allowed.sum())
        depth = min(count, max(POOL, 4 * spec.limit))
        probabilities: Floats | None = None
        while True:
            proposed, bound = [], 0.0
            for m, weight in enumerate(weights):
                if weight > 0:
                    rows, similarities = self._propose(m, query, depth)
                    proposed.append(rows)
                    bound += float(weight) * (float(similarities.min()) if len(similarities) else -1.0)
            rows = np.unique(np.concatenate(proposed))
            if probabilities is None:
                probabilities = self._label_vote(rows, query, weights, spec, heads)
            if allowed is not None and possible <= DEEPEST:
                # A narrow filter, which the indexes cannot see: scoring its few images is cheaper than digging.
                ranking = self._rank(np.flatnonzero(allowed), query, weights, spec, probabilities)
                return _at_least(ranking, spec.min_score)
            if allowed is not None:
                rows = rows[allowed[rows]]
            ranking = self._rank(rows, query, weights, spec, probabilities)
            complete = len(rows) >= min(spec.limit, possible)
            exact = spec.fusion is not Fusion.WEIGHTED_VOTE
            if complete and not exact and len(ranking.rows):
                # What nobody proposed scores at most the sum of the worst proposals, and the best label.
                if probabilities is not None:
                    bound += self._vote.label_share * float(probabilities.max())
                exact = float(ranking.fused[-1]) >= bound
            deepest = depth >= min(count, DEEPEST)
            if complete and (exact or deepest):
                return _at_least(ranking, spec.min_score)
            if deepest:
                # The indexes give up before there is an answer: whatever is allowed is scored one and all.
                everything = np.arange(count) if allowed is None else np.flatnonzero(allowed)
                ranking = self._rank(everything, query, weights, spec, probabilities)
                return _at_least(ranking, spec.min_score)
            depth = min(count, 4 * depth)

    def _propose(self, m: int, query: Floats, depth: int) -> tuple[NDArray[np.int64], Floats]:
        start, stop = int(self._stops[m]), int(self._stops[m + 1])
        part = query[None, start:stop]
        index = self._indexes[m]
        if index is None:
            scores = self._product_part(torch.from_numpy(part).to(self._device), start, stop)
            best = torch.topk(scores[0], depth)
            return best.indices.cpu().numpy(), best.values.float().cpu().numpy()
        rows, similarities = index.search(part, depth)
        found = rows[0] >= 0
        return rows[0][found], similarities[0][found]

    def _product_part(self, part: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        if self._matrix.dtype == torch.float32 or self._device == "cuda":
            return part.to(self._matrix.dtype) @ self._matrix[:, start:stop].T
        return torch.cat([part @ b[:, start:stop].float().T for b in torch.split(self._matrix, _BLOCK_ROWS)], dim=1)

    # Both: complete rescoring, votes, order.

    def _similarities(self, rows: NDArray[np.int64], query: Floats) -> Floats:
        """(C, M) exact cosines of candidates, in float32."""
        vectors = self.stored(rows.tolist())
        product = vectors * query
        return np.add.reduceat(product, self._stops[:-1], axis=1).astype(np.float32)

    def _label_vote(
        self, rows: NDArray[np.int64], query: Floats, weights: Floats, spec: SearchSpec, heads: Floats | None
    ) -> Floats | None:
        """P(label | query) from the nearest of the candidates, the heads and the class names; None without labels."""
        if not self.gallery.labels:
            return None
        rows = rows[~np.isin(rows, spec.exclude_rows)]
        neighbours: Floats | None = None
        if len(rows):
            fused = self._similarities(rows, query) @ weights
            neighbours = neighbour_probabilities(
                fused, self.gallery.label_codes[rows], self._vote.neighbours, self._vote.temperature,
                len(self.gallery.labels),
            )  # fmt: skip
        vote, prior = self._vote, spec.label_prior
        text_share = 0.0 if prior is None else vote.text_share * float(prior.sum())
        shares = {
            "heads": vote.head_share * (1 - text_share),
            "names": text_share,
            "neighbours": (1 - vote.head_share) * (1 - text_share),
        }
        names = prior / prior.sum() if text_share > 0 and prior is not None else None
        return mixed_probabilities({"heads": heads, "names": names, "neighbours": neighbours}, shares)

    def _rank(
        self, rows: NDArray[np.int64], query: Floats, weights: Floats, spec: SearchSpec, probabilities: Floats | None
    ) -> Ranking:
        # Rows are in id order, so a stable sort breaks ties by image id.
        rows = np.sort(rows)
        similarities = self._similarities(rows, query) if len(rows) else np.zeros((0, len(weights)), np.float32)
        ranks = member_ranks(similarities)
        if spec.fusion is Fusion.RECIPROCAL_RANK:
            contributions = rank_contributions(ranks, weights)
        else:
            contributions = vote_contributions(similarities, weights)
        labels = np.zeros(len(rows), np.float32)
        if probabilities is not None and self._vote.label_share > 0:
            codes = self.gallery.label_codes[rows]
            labels = np.where(codes >= 0, probabilities[codes], 0).astype(np.float32) * self._vote.label_share
        fused = contributions.sum(axis=1) + labels
        order = np.argsort(-fused, kind="stable")[: spec.limit]
        scores = self._calibrate(fused[order])
        return Ranking(
            rows[order], scores, fused[order], similarities[order], ranks[order], contributions[order], labels[order],
            self._name_labels(probabilities),
        )  # fmt: skip

    def _calibrate(self, fused: Floats) -> Floats:
        if self._vote.calibration is None:
            # Uncalibrated, the score is the fused cosine itself, of which a negative one means "nothing alike".
            top = 1.0 + self._vote.label_share
            return np.asarray(np.clip(fused / top, 0, 1), dtype=np.float32)
        return probability_of_relevance(fused, self._vote.calibration)

    def _name_labels(self, probabilities: Floats | None, most: int = 5) -> list[tuple[str, float]]:
        if probabilities is None:
            return []
        best = np.argsort(-probabilities, kind="stable")[:most]
        return [(self.gallery.labels[i], float(probabilities[i])) for i in best if probabilities[i] > 0.005]


def _at_least(ranking: Ranking, min_score: float | None) -> Ranking:
    """Drop the hits whose score is lower; they are at the end, as scores fall with the rank."""
    if min_score is None:
        return ranking
    count = int((ranking.scores >= min_score).sum())
    cut = {name: value[:count] for name, value in vars(ranking).items() if name != "labels"}
    return Ranking(**cut, labels=ranking.labels)
