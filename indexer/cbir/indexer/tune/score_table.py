"""The score table: every member's similarities of each query and its candidates, before any vote on them.

It is small compared with the gallery, so that trying a set of weights and vote parameters is cheap.  Linear heads, like
metrics (:mod:`cbir.indexer.evaluate.cross_fit`), were not fitted to the labels of the queries that they score.

Shapes: N images (the gallery first, then given queries), Q queries, C candidates, M members, L classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cbir.core.machine import side_by_side
from cbir.core.vote import fit_head
from cbir.indexer.evaluate import FoldMetrics, MemberSpace, MemberVectors, Sharpening, Split, sharpen
from cbir.indexer.tune.candidate_pool import LIKELY, find_candidates, most_candidates, products, rows_by_class

__all__ = ["ScoreTable", "score_table"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Rows = NDArray[np.int64]

_BLOCK = 256


@dataclass(frozen=True)
class ScoreTable:
    """Everything that is needed to measure a trial.

    Attributes:
        keys: K pairs (member number, dim), in the order of the second axis of the arrays below.
        similarities: (Q, K, C) cosines.
        heads: (Q, K, L) scores of the linear heads; (Q, 0, 0) if there are none.
        names: By member number: (Q, L) label priors by class names.  Each row sums to the trust in the member
            (:func:`cbir.core.search.zero_shot.names_trust`); members that are not trusted are left out.
        candidate_rows: (Q, C) row numbers, the most likely first; elements beyond a query's count have no meaning.
        candidate_codes: (Q, C) their class numbers, -1 for images without a label.
        counts: (Q,) number of candidates of each query.
        codes: (Q,) class numbers of the queries.
        totals: (Q,) R, the number of relevant images.
        rows: (Q,) row number of the query image.
        classes: L, the number of classes.
    """

    keys: tuple[tuple[int, int], ...]
    similarities: Floats
    heads: Floats
    names: Mapping[int, Floats]
    candidate_rows: Ints
    candidate_codes: Ints
    counts: Ints
    codes: Ints
    totals: Rows
    rows: Rows
    classes: int

    def __len__(self) -> int:
        return len(self.codes)

    def part(self, queries: Rows) -> ScoreTable:
        """The table of some of the queries."""
        fields = ("similarities", "heads", "candidate_rows", "candidate_codes", "counts", "codes", "totals", "rows")
        return replace(
            self,
            names={m: said[queries] for m, said in self.names.items()},
            **{name: getattr(self, name)[queries] for name in fields},
        )


def score_table(
    spaces: Sequence[MemberSpace],
    dims: Sequence[Sequence[int]],
    codes: NDArray[np.integer],
    splits: Sequence[Split],
    *,
    metrics: FoldMetrics | None = None,
    names: Mapping[int, Floats] | None = None,
    sharpening: Sharpening | None = None,
    weights: Floats | None = None,
    device: str = "cpu",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> ScoreTable:
    """Score the queries of all splits.

    Args:
        dims: For each member the dimensions to keep scores for, the usual one first; only one with ``sharpening``.
        codes: (N,) class numbers, -1 without a label.
        metrics: Metrics of the same spaces, codes and splits, if an earlier table has learnt them.
        names: By member number: (N, L) label priors by class names; see :class:`ScoreTable`.
        weights: (M,) weights for finding candidates and, with ``sharpening``, neighbours; None for equal ones.
        device: Where similarities are computed.
    """
    share = np.full(len(spaces), 1 / len(spaces)) if weights is None else weights / weights.sum()
    classes = int(codes.max()) + 1 if len(codes) and codes.max() >= 0 else 0
    metrics = metrics or FoldMetrics(spaces, codes, splits)
    named = dict(names or {}) if classes else {}
    parts: list[ScoreTable] = []
    for number, split in enumerate(splits):
        report(number, len(splits))
        vectors = metrics.project(dims, number)
        heads = _of_heads(vectors, codes, split, classes) if classes >= 2 and len(split.teachers) else {}
        asking = {key: z[split.queries] for key, z in vectors.items()}
        searched = {key: z[split.gallery] for key, z in vectors.items()}
        del vectors
        if sharpening:
            asking, searched = sharpen(asking, searched, share, sharpening)
        said = {m: p[split.queries] for m, p in named.items()}
        parts.append(_of_split(asking, searched, heads, said, codes, split, dims, share, classes, device))
    report(len(splits), len(splits))
    return _join(parts)


def _of_heads(vectors: MemberVectors, codes: NDArray[np.integer], split: Split, classes: int) -> MemberVectors:
    """(Q, L) scores of the classes for the split's queries, by heads that its teachers' labels taught."""

    def scores(z: Floats) -> Floats:
        return fit_head(z[split.teachers], codes[split.teachers], classes).scores(z[split.queries])

    return dict(zip(vectors, side_by_side(scores, vectors.values()), strict=True))


def _of_split(
    asking: MemberVectors,
    searched: MemberVectors,
    heads: Mapping[tuple[int, int], Floats],
    names: Mapping[int, Floats],
    codes: NDArray[np.integer],
    split: Split,
    dims: Sequence[Sequence[int]],
    share: NDArray[np.floating],
    classes: int,
    device: str,
) -> ScoreTable:
    """Find the candidates of each query in one split, and their similarities."""
    usual = [(m, choices[0]) for m, choices in enumerate(dims)]
    keys, count = tuple(asking), len(split.queries)
    gallery_codes = codes[split.gallery].astype(np.int32)
    sizes = np.bincount(gallery_codes[gallery_codes >= 0], minlength=max(classes, 1))
    class_rows = rows_by_class(gallery_codes, classes)
    base = {key: torch.from_numpy(searched[key]).to(device).T for key in usual}
    opinions = [np.sum([heads[key] for key in usual], axis=0)] if heads else []
    opinions += [np.sum(list(names.values()), axis=0)] if names else []
    likely = [np.argsort(-opinion, axis=1, kind="stable")[:, :LIKELY] for opinion in opinions]
    wanted = np.concatenate(likely, axis=1).astype(np.int32) if likely else np.zeros((count, 0), np.int32)
    most = most_candidates(len(usual), len(opinions), len(split.gallery))
    rows, counts = np.empty((count, most), np.int32), np.empty(count, np.int32)
    similarities = np.zeros((count, len(keys), most), np.float32)
    weights = share.astype(np.float32)
    for start in range(0, count, _BLOCK):
        block = slice(start, start + _BLOCK)
        found = [torch.from_numpy(asking[key][block]).to(device) @ base[key] for key in usual]
        scores = torch.stack(found).cpu().numpy()
        rows[block], counts[block] = find_candidates(scores, weights, wanted[block], class_rows, most)
        for place, key in enumerate(keys):
            if key in usual:
                similarities[block, place] = np.take_along_axis(scores[usual.index(key)], rows[block], axis=1)
            else:
                products(asking[key][block], searched[key], rows[block], counts[block], similarities[block, place])
    width = int(counts.max(initial=0))
    query_codes = codes[split.queries]
    return ScoreTable(
        keys, similarities[:, :, :width].copy(),
        np.stack([heads[key] for key in keys], axis=1) if heads else np.zeros((count, 0, 0), np.float32),
        names, rows[:, :width].copy(), gallery_codes[rows[:, :width]], counts, query_codes.astype(np.int32),
        sizes[query_codes], split.queries, classes,
    )  # fmt: skip


def _join(parts: Sequence[ScoreTable]) -> ScoreTable:
    """Concatenate the tables of several splits, padded to the most candidates."""
    width = max(part.candidate_rows.shape[1] for part in parts)

    def joined(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        if name in ("similarities", "candidate_rows", "candidate_codes"):
            arrays = [np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, width - a.shape[-1])]) for a in arrays]
        return np.concatenate(arrays)

    fields = ("similarities", "heads", "candidate_rows", "candidate_codes", "counts", "codes", "totals", "rows")
    return replace(
        parts[0],
        names={m: np.concatenate([part.names[m] for part in parts]) for m in parts[0].names},
        **{name: joined(name) for name in fields},
    )
