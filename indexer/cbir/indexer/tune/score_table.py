"""The score table: what the members think of each query's candidates, and the vote on it is still to be chosen.

What is kept of a gallery is small, so that a trial of weights and vote is one pass over a few arrays.  Heads, like
metrics (:mod:`cbir.indexer.tune.cross_fit`), never saw the label of the query that they score.

Shapes: N images (gallery first, given queries after), Q queries, C candidates, M members, L classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cbir.core.vote import fit_head
from cbir.indexer.tune.cross_fit import (
    MemberSpace,
    MemberVectors,
    Sharpening,
    Split,
    label_free_metrics,
    project,
    sharpen,
)

__all__ = ["ScoreTable", "score_table"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

#: Candidates of a query: the best by the members together, by each alone, and of each of the likeliest classes.
TOGETHER, ALONE, LIKELY, EACH = 200, 40, 3, 12
_BLOCK = 512


@dataclass(frozen=True)
class ScoreTable:
    """Everything a trial needs, on one device.

    Attributes:
        similarities: By (member number, dim): (Q, C) cosines.
        heads: By (member number, dim): (Q, L) scores of the linear heads; empty without.
        names: By member number: (Q, L) what the names of the classes say, rows summing to how much the member is
            trusted in that (:func:`cbir.core.search.zero_shot.names_trust`); those that are not are missing.
        candidate_codes: (Q, C) class numbers, -1 for images without a label.
        valid: (Q, C) False where a query has fewer candidates.
        codes: (Q,) the queries' classes.
        totals: (Q,) R.
        rows: (Q,) which image asks.
        classes: L.
    """

    similarities: Mapping[tuple[int, int], torch.Tensor]
    heads: Mapping[tuple[int, int], torch.Tensor]
    names: Mapping[int, torch.Tensor]
    candidate_codes: torch.Tensor
    valid: torch.Tensor
    codes: torch.Tensor
    totals: torch.Tensor
    rows: Ints
    classes: int

    def __len__(self) -> int:
        return len(self.codes)

    def part(self, queries: Ints) -> ScoreTable:
        """The table of some of its queries."""
        index = torch.from_numpy(queries).to(self.codes.device)
        return ScoreTable(
            {k: v[index] for k, v in self.similarities.items()}, {k: v[index] for k, v in self.heads.items()},
            {m: v[index] for m, v in self.names.items()},
            self.candidate_codes[index], self.valid[index], self.codes[index], self.totals[index], self.rows[queries],
            self.classes,
        )  # fmt: skip


def score_table(
    spaces: Sequence[MemberSpace],
    dims: Sequence[Sequence[int]],
    codes: NDArray[np.integer],
    splits: Sequence[Split],
    *,
    names: Mapping[int, Floats] | None = None,
    sharpening: Sharpening | None = None,
    weights: Floats | None = None,
    device: str = "cpu",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> ScoreTable:
    """Score the queries of all splits.

    Args:
        dims: For each member the dimensions to keep scores for, the usual one first.  With ``sharpening`` one each.
        codes: (N,) class numbers, -1 without a label.
        names: By member number: (N, L) what the names of the classes say; see :class:`ScoreTable`.
        weights: (M,) for finding candidates (and neighbours, with ``sharpening``); default: equal.
    """
    share = np.full(len(spaces), 1 / len(spaces)) if weights is None else weights / weights.sum()
    classes = int(codes.max()) + 1 if len(codes) and codes.max() >= 0 else 0
    label_free = label_free_metrics(spaces, dims, splits, codes)
    named = dict(names or {}) if classes else {}
    parts: list[ScoreTable] = []
    for number, split in enumerate(splits):
        report(number, len(splits))
        vectors = project(spaces, dims, codes, split, label_free)
        heads = {}
        if classes >= 2 and len(split.teachers):
            for key, z in vectors.items():
                heads[key] = fit_head(z[split.teachers], codes[split.teachers], classes).scores(z[split.queries])
        asking = {key: z[split.queries] for key, z in vectors.items()}
        searched = {key: z[split.gallery] for key, z in vectors.items()}
        if sharpening:
            asking, searched = sharpen(asking, searched, share, sharpening)
        said = {m: p[split.queries] for m, p in named.items()}
        parts.append(_candidates(asking, searched, heads, said, codes, split, dims, share, classes, device))
    return _join(parts)


def _candidates(
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
    """Find each query's candidates in one split, and keep their similarities."""
    usual = [(m, choices[0]) for m, choices in enumerate(dims)]
    gallery_codes = torch.from_numpy(codes[split.gallery].astype(np.int64)).to(device)
    base = {key: torch.from_numpy(z).to(device) for key, z in searched.items()}
    sizes = np.bincount(codes[split.gallery][codes[split.gallery] >= 0], minlength=max(classes, 1))
    count = len(split.gallery)
    found_codes: list[torch.Tensor] = []
    valid_places: list[torch.Tensor] = []
    similarities: dict[tuple[int, int], list[torch.Tensor]] = {key: [] for key in asking}
    for start in range(0, len(split.queries), _BLOCK):
        block = slice(start, start + _BLOCK)
        scores = {key: torch.from_numpy(z[block]).to(device) @ base[key].T for key, z in asking.items()}
        fused = torch.stack([float(w) * scores[key] for w, key in zip(share, usual, strict=True)]).sum(dim=0)
        found = [torch.topk(fused, min(TOGETHER, count)).indices]
        found += [torch.topk(scores[key], min(ALONE, count)).indices for key in usual]
        opinions = [[heads[key][block] for key in usual]] if heads else []
        opinions += [[said[block] for said in names.values()]] if names else []
        for opinion in opinions:
            likely = torch.from_numpy(np.sum(opinion, axis=0)).to(device)
            for code in torch.topk(likely, min(LIKELY, classes)).indices.T:
                other = gallery_codes[None, :] != code[:, None]
                found.append(torch.topk(fused.masked_fill(other, -torch.inf), min(EACH, count)).indices)
        # In row order, so that ties break by id; what was found twice counts once.
        rows = torch.cat(found, dim=1).sort(dim=1).values
        valid = torch.ones_like(rows, dtype=torch.bool)
        valid[:, 1:] = rows[:, 1:] != rows[:, :-1]
        found_codes.append(gallery_codes[rows])
        valid_places.append(valid)
        for key, matrix in scores.items():
            similarities[key].append(matrix.gather(1, rows))
    return ScoreTable(
        {key: torch.cat(blocks) for key, blocks in similarities.items()},
        {key: torch.from_numpy(z).to(device) for key, z in heads.items()},
        {m: torch.from_numpy(p).to(device) for m, p in names.items()},
        torch.cat(found_codes),
        torch.cat(valid_places),
        torch.from_numpy(codes[split.queries].astype(np.int64)).to(device),
        torch.from_numpy(sizes[codes[split.queries]].astype(np.int64)).to(device),
        split.queries,
        classes,
    )


def _join(parts: Sequence[ScoreTable]) -> ScoreTable:
    """The tables of several splits as one, of the widest one's candidates."""
    width = max(part.valid.shape[1] for part in parts)

    def widened(tensors: Iterable[torch.Tensor], fill: float = 0) -> torch.Tensor:
        return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1]), value=fill) for t in tensors])

    first = parts[0]
    return ScoreTable(
        {key: widened(part.similarities[key] for part in parts) for key in first.similarities},
        {key: torch.cat([part.heads[key] for part in parts]) for key in first.heads},
        {m: torch.cat([part.names[m] for part in parts]) for m in first.names},
        widened((part.candidate_codes for part in parts), -1),
        widened(part.valid for part in parts),
        torch.cat([part.codes for part in parts]),
        torch.cat([part.totals for part in parts]),
        np.concatenate([part.rows for part in parts]),
        first.classes,
    )
