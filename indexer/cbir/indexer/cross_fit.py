"""Honest material for tuning: every query is scored by metrics and heads that never saw its label.

The labelled gallery is cut into folds; the images of a fold are queries against all others, under a metric and heads
fitted to the others.  What is kept of it is small (the members' similarities to each query's candidates), so that a
trial of weights and vote is one pass over a few arrays.

Shapes: N images (gallery first, given queries after), Q queries, C candidates, M members, L classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cbir.core.expansion import augmented, expanded
from cbir.core.label_vote import fit_head
from cbir.core.neighbour_metric import SAMPLE, neighbour_metrics
from cbir.core.projection import enough_labels, fit_glrt, fit_pca, normalise

__all__ = ["MemberSpace", "ScoreTable", "Sharpening", "Split", "cross_splits", "member_space", "score_table"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

#: Candidates of a query: the best by the members together, by each alone, and of each of the likeliest classes.
TOGETHER, ALONE, LIKELY, EACH = 200, 40, 3, 12
_BLOCK = 512


@dataclass(frozen=True)
class Split:
    """Whose labels teach, what is searched, and what asks; row numbers all."""

    teachers: Ints
    gallery: Ints
    queries: Ints


@dataclass(frozen=True)
class MemberSpace:
    """A member's embeddings before the metric.

    Attributes:
        components: (N, D) coordinates on the principal components, not normalised: a prefix is a smaller projection.
        glrt: A metric is learnt on them.
        dim: The components that the ensemble file asks for.
    """

    name: str
    components: Floats
    glrt: bool
    dim: int

    def unit(self, dim: int) -> Floats:
        """(N, dim) unit vectors of the first components."""
        return normalise(self.components[:, :dim])


@dataclass(frozen=True)
class Sharpening:
    """Augmentation of the gallery and expansion of queries; see :mod:`cbir.core.expansion`."""

    augmentation_neighbours: int = 5
    augmentation_exponent: float = 3.0
    expansion_neighbours: int = 10
    expansion_exponent: float = 3.0


@dataclass(frozen=True)
class ScoreTable:
    """Everything a trial needs, on one device.

    Attributes:
        similarities: By (member number, dim): (Q, C) cosines.
        heads: By (member number, dim): (Q, L) scores of the linear heads; empty without.
        candidate_codes: (Q, C) class numbers, -1 for images without a label.
        valid: (Q, C) False where a query has fewer candidates.
        codes: (Q,) the queries' classes.
        totals: (Q,) R.
        rows: (Q,) which image asks.
        classes: L.
    """

    similarities: Mapping[tuple[int, int], torch.Tensor]
    heads: Mapping[tuple[int, int], torch.Tensor]
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
            self.candidate_codes[index], self.valid[index], self.codes[index], self.totals[index], self.rows[queries],
            self.classes,
        )  # fmt: skip


def member_space(name: str, raw: Floats, gallery: int, metric: str, dim: int, widest: int) -> MemberSpace:
    """Principal components of a member's raw vectors, fitted to the first ``gallery`` rows."""
    mean, basis = fit_pca(raw[:gallery], max(dim, widest), centred=metric != "cosine")
    return MemberSpace(name, np.asarray((raw - mean) @ basis, np.float32), metric == "glrt", dim)


def cross_splits(codes: NDArray[np.integer], groups: Sequence[str], folds: int = 5, seed: int = 0) -> list[Split]:
    """Cut a gallery into folds, class by class.

    Args:
        codes: (N,) class numbers, -1 for images without a label: they are searched in every fold and never ask.
        groups: (N,) images of one group (the same bytes) go into one fold, so that none finds itself.
    """
    rng = np.random.default_rng(seed)
    place = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    group = np.array([place[name] for name in groups])
    fold_of_group = np.full(len(place), -1)
    counter = 0
    for code in np.unique(codes[codes >= 0]):
        for number in rng.permutation(np.unique(group[codes == code])):
            if fold_of_group[number] < 0:
                fold_of_group[number] = counter % folds
                counter += 1
    fold = np.where(codes >= 0, fold_of_group[group], -1)
    splits = []
    for f in range(folds):
        others = np.flatnonzero(fold != f)
        asking = np.flatnonzero(fold == f)
        if len(asking):
            splits.append(Split(others[codes[others] >= 0], others, asking))
    return splits


def score_table(
    spaces: Sequence[MemberSpace],
    dims: Sequence[Sequence[int]],
    codes: NDArray[np.integer],
    splits: Sequence[Split],
    *,
    sharpening: Sharpening | None = None,
    weights: Floats | None = None,
    device: str = "cpu",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> ScoreTable:
    """Score the queries of all splits.

    Args:
        dims: For each member the dimensions to keep scores for, the usual one first.  With ``sharpening`` one each.
        codes: (N,) class numbers, -1 without a label.
        weights: (M,) for finding candidates (and neighbours, with ``sharpening``); default: equal.
    """
    share = np.full(len(spaces), 1 / len(spaces)) if weights is None else weights / weights.sum()
    classes = int(codes.max()) + 1 if len(codes) and codes.max() >= 0 else 0
    unsupervised = _unsupervised(spaces, dims, splits, codes)
    parts: list[dict[str, object]] = []
    for number, split in enumerate(splits):
        report(number, len(splits))
        vectors = _project(spaces, dims, codes, split, unsupervised)
        heads = {}
        if classes >= 2 and len(split.teachers):
            for key, z in vectors.items():
                heads[key] = fit_head(z[split.teachers], codes[split.teachers], classes).scores(z[split.queries])
        asking = {key: z[split.queries] for key, z in vectors.items()}
        searched = {key: z[split.gallery] for key, z in vectors.items()}
        if sharpening:
            asking, searched = _sharpen(asking, searched, share, sharpening)
        parts.append(_candidates(asking, searched, heads, codes, split, dims, share, classes, device))
    return _join(parts, classes)


def _unsupervised(
    spaces: Sequence[MemberSpace], dims: Sequence[Sequence[int]], splits: Sequence[Split], codes: NDArray[np.integer]
) -> dict[tuple[int, int], Floats]:
    """Metrics learnt without labels, where some split has too few; they are the same for all splits."""
    if all(enough_labels(codes[s.teachers]) for s in splits):
        return {}
    rows = np.unique(np.concatenate([s.gallery for s in splits]))
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(rows, SAMPLE, replace=False))
    learning = [m for m, space in enumerate(spaces) if space.glrt]
    metrics: dict[tuple[int, int], Floats] = {}
    for choice in range(max(len(d) for d in dims)):
        keys = [(m, dims[m][min(choice, len(dims[m]) - 1)]) for m in learning]
        if not keys or all(key in metrics for key in keys):
            continue
        found = neighbour_metrics([spaces[m].unit(d)[rows] for m, d in keys])
        for key, metric in zip(keys, found, strict=True):
            metrics.setdefault(key, metric)
    return metrics


def _project(
    spaces: Sequence[MemberSpace],
    dims: Sequence[Sequence[int]],
    codes: NDArray[np.integer],
    split: Split,
    unsupervised: Mapping[tuple[int, int], Floats],
) -> dict[tuple[int, int], Floats]:
    result = {}
    for m, space in enumerate(spaces):
        for dim in dims[m]:
            z = space.unit(dim)
            if space.glrt:
                metric = unsupervised.get((m, dim))
                if metric is None:
                    metric = fit_glrt(z[split.teachers], codes[split.teachers])
                z = normalise(z @ metric.T)
            result[m, dim] = z
    return result


def _sharpen(
    asking: Mapping[tuple[int, int], Floats],
    searched: Mapping[tuple[int, int], Floats],
    share: NDArray[np.floating],
    how: Sharpening,
) -> tuple[dict[tuple[int, int], Floats], dict[tuple[int, int], Floats]]:
    keys = list(asking)
    widths = [asking[key].shape[1] for key in keys]
    gallery = augmented(
        np.concatenate([searched[key] for key in keys], axis=1), widths, how.augmentation_neighbours,
        how.augmentation_exponent, np.asarray(share),
    )  # fmt: skip
    queries = np.concatenate([asking[key] for key in keys], axis=1)
    scale = np.repeat(share, widths).astype(np.float32)
    moved = np.empty_like(queries)
    base = torch.from_numpy(gallery)
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK]
        best = torch.topk(torch.from_numpy(block * scale) @ base.T, min(how.expansion_neighbours, len(gallery)))
        for i, (rows, values) in enumerate(zip(best.indices.numpy(), best.values.numpy(), strict=True)):
            moved[start + i] = expanded(block[i], gallery[rows], values, how.expansion_exponent, widths)
    stops = np.cumsum(widths)[:-1]
    return (
        dict(zip(keys, np.split(moved, stops, axis=1), strict=True)),
        dict(zip(keys, np.split(gallery, stops, axis=1), strict=True)),
    )


def _candidates(
    asking: Mapping[tuple[int, int], Floats],
    searched: Mapping[tuple[int, int], Floats],
    heads: Mapping[tuple[int, int], Floats],
    codes: NDArray[np.integer],
    split: Split,
    dims: Sequence[Sequence[int]],
    share: NDArray[np.floating],
    classes: int,
    device: str,
) -> dict[str, object]:
    """Find each query's candidates in one split, and keep their similarities."""
    usual = [(m, choices[0]) for m, choices in enumerate(dims)]
    gallery_codes = torch.from_numpy(codes[split.gallery].astype(np.int64)).to(device)
    base = {key: torch.from_numpy(z).to(device) for key, z in searched.items()}
    sizes = np.bincount(codes[split.gallery][codes[split.gallery] >= 0], minlength=max(classes, 1))
    count = len(split.gallery)
    kept: dict[str, list[torch.Tensor]] = {"codes": [], "valid": []}
    similarities: dict[tuple[int, int], list[torch.Tensor]] = {key: [] for key in asking}
    for start in range(0, len(split.queries), _BLOCK):
        block = slice(start, start + _BLOCK)
        scores = {key: torch.from_numpy(z[block]).to(device) @ base[key].T for key, z in asking.items()}
        fused = torch.stack([float(w) * scores[key] for w, key in zip(share, usual, strict=True)]).sum(dim=0)
        found = [torch.topk(fused, min(TOGETHER, count)).indices]
        found += [torch.topk(scores[key], min(ALONE, count)).indices for key in usual]
        if heads:
            likely = torch.from_numpy(np.sum([heads[key][block] for key in usual], axis=0)).to(device)
            for code in torch.topk(likely, min(LIKELY, classes)).indices.T:
                other = gallery_codes[None, :] != code[:, None]
                found.append(torch.topk(fused.masked_fill(other, -torch.inf), min(EACH, count)).indices)
        # In row order, so that ties break by id; what was found twice counts once.
        rows = torch.cat(found, dim=1).sort(dim=1).values
        valid = torch.ones_like(rows, dtype=torch.bool)
        valid[:, 1:] = rows[:, 1:] != rows[:, :-1]
        kept["codes"].append(gallery_codes[rows])
        kept["valid"].append(valid)
        for key, matrix in scores.items():
            similarities[key].append(matrix.gather(1, rows))
    return {
        "similarities": {key: torch.cat(blocks) for key, blocks in similarities.items()},
        "heads": {key: torch.from_numpy(z).to(device) for key, z in heads.items()},
        "candidate_codes": torch.cat(kept["codes"]),
        "valid": torch.cat(kept["valid"]),
        "codes": torch.from_numpy(codes[split.queries].astype(np.int64)).to(device),
        "totals": torch.from_numpy(sizes[codes[split.queries]].astype(np.int64)).to(device),
        "rows": split.queries,
    }


def _join(parts: Sequence[Mapping[str, object]], classes: int) -> ScoreTable:
    width = max(part["valid"].shape[1] for part in parts)  # type: ignore[attr-defined]

    def widened(name: str, fill: float) -> torch.Tensor:
        tensors: list[torch.Tensor] = [part[name] for part in parts]  # type: ignore[misc]
        return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1]), value=fill) for t in tensors])

    def keyed(name: str) -> dict[tuple[int, int], torch.Tensor]:
        tables: list[dict[tuple[int, int], torch.Tensor]] = [part[name] for part in parts]  # type: ignore[misc]
        if name == "heads" or not tables:
            return {key: torch.cat([table[key] for table in tables]) for key in tables[0]}
        pad = torch.nn.functional.pad
        return {key: torch.cat([pad(t[key], (0, width - t[key].shape[1])) for t in tables]) for key in tables[0]}

    return ScoreTable(
        keyed("similarities"),
        keyed("heads"),
        widened("candidate_codes", -1),
        widened("valid", 0),
        torch.cat([part["codes"] for part in parts]),  # type: ignore[misc]
        torch.cat([part["totals"] for part in parts]),  # type: ignore[misc]
        np.concatenate([part["rows"] for part in parts]),
        classes,
    )
