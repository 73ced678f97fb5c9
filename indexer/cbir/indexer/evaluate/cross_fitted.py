"""Leave-one-out figures that mean something: the gallery's own images are asked in folds.

Where labels taught an index its metric or its heads, each image helped to place itself beside its kind, and is found
with 100 %.  So the labelled gallery is cut into folds; the images of a fold are asked of an index of all others, whose
metric, heads and averaged vectors are made of these others alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import Gallery, IndexVersion
from cbir.core.ensemble import choose_runtime
from cbir.core.metric import MIN_IMAGES, augmented
from cbir.core.search import Retriever, Searcher
from cbir.core.vote import Ranking, SearchSpec, fit_head
from cbir.indexer.build import Progress, RawEmbeddings, RunSettings
from cbir.indexer.evaluate.answers import Judge
from cbir.indexer.evaluate.cross_fit import Split, cross_splits, member_space
from cbir.indexer.evaluate.fold_metrics import FoldMetrics
from cbir.indexer.evaluate.query_set import QuerySet

__all__ = ["CrossFitted", "fit_folds", "judge_of"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Fold:
    """An index of some of the gallery's rows, in their order."""

    rows: Ints
    retriever: Retriever


class CrossFitted:
    """Answers each image of the gallery from an index that was made without it; otherwise a ``Searcher`` like others.

    Queries are those of :meth:`queries`, whose vectors have one number more: the fold.

    Args:
        published: The index of the whole gallery.
        vectors: (N, sum of dims) of each row under the metric of its own fold.
        fold_of: (N,) the fold in which a row asks, or -1.
    """

    def __init__(self, published: Searcher, folds: Sequence[_Fold], vectors: Floats, fold_of: Ints) -> None:
        self.gallery, self.members, self.weights = published.gallery, published.members, published.weights
        self.dims, self.raw_dims, self.index_name = published.dims, published.raw_dims, "exact"
        self._published, self._folds, self._vectors, self._fold_of = published, folds, vectors, fold_of

    def queries(self, of_gallery: QuerySet) -> QuerySet:
        """The same images of the gallery, as they are to be asked here."""
        rows = [self.gallery.row(name) for name in of_gallery.ids]
        folds = self._fold_of[rows].astype(np.float32)
        return replace(of_gallery, vectors=np.concatenate([self._vectors[rows], folds[:, None]], axis=1))

    def judge(self, queries: QuerySet) -> Judge:
        """R of each query counts the index that it is asked of; it is 0 for an image that is never held out."""
        plain, codes, totals = Judge.of(self.gallery, queries), self.gallery.label_codes, []
        inside = [np.isin(np.arange(len(self.gallery)), fold.rows) for fold in self._folds]
        sizes = [np.bincount(codes[there & (codes >= 0)], minlength=len(self.gallery.labels)) for there in inside]
        for code, own, fold in zip(plain.codes, plain.own, queries.vectors[:, -1].astype(int), strict=True):
            kin = sum(bool(inside[fold][row]) and codes[row] == code for row in own)
            totals.append(int(sizes[fold][code] - kin) if fold >= 0 else 0)
        return replace(plain, totals=tuple(totals))

    def project(self, raw: Mapping[str, Floats]) -> Floats:
        """As published."""
        return self._published.project(raw)

    def vectors_of(self, rows: Sequence[int]) -> Floats:
        """As published."""
        return self._published.vectors_of(rows)

    def search(self, queries: Floats, specs: Sequence[SearchSpec]) -> list[Ranking]:
        """See :class:`cbir.core.search.Searcher`."""
        asked_of = queries[:, -1].astype(int)
        results = [_nothing(len(self.members))] * len(queries)
        for number, fold in enumerate(self._folds):
            mine = np.flatnonzero(asked_of == number).tolist()
            if not mine:
                continue
            within = [_within(specs[i], fold.rows, len(self.gallery)) for i in mine]
            found = fold.retriever.search(np.ascontiguousarray(queries[mine, :-1]), within)
            for i, ranking in zip(mine, found, strict=True):
                results[i] = replace(ranking, rows=fold.rows[ranking.rows])
        return results


def judge_of(searcher: Searcher, queries: QuerySet) -> Judge:
    """What is known of the queries before anything is searched."""
    return searcher.judge(queries) if isinstance(searcher, CrossFitted) else Judge.of(searcher.gallery, queries)


def _within(spec: SearchSpec, rows: Ints, count: int) -> SearchSpec:
    """A spec in the row numbers of a fold's index."""
    place = np.full(count, -1)
    place[rows] = np.arange(len(rows))
    excluded = place[list(spec.exclude_rows)]
    mask = None if spec.mask is None else spec.mask[rows]
    return replace(spec, mask=mask, exclude_rows=tuple(int(row) for row in excluded[excluded >= 0]))


def _nothing(members: int) -> Ranking:
    none, table = np.zeros(0, np.float32), np.zeros((0, members), np.float32)
    return Ranking(np.zeros(0, np.int64), none, none, table, table.astype(np.int64), table, none)


def fit_folds(
    version: IndexVersion,
    published: Searcher,
    cache: Path,
    settings: RunSettings,
    on_progress: Callable[[Progress], None] | None = None,
) -> CrossFitted | None:
    """Make the folds' indexes.

    Args:
        cache: The folder with the raw embeddings of the gallery.

    Returns:
        None where labels taught nothing, so that plain leave-one-out is fair; or where folds cannot be made, as the
        gallery is too small or its raw embeddings are gone.
    """
    gallery, members, vote = version.gallery, version.manifest.ensemble.members, version.vote
    facts = version.manifest.members
    with_heads = bool(version.heads())
    by_labels = any(one["fitted_on"] == "labels" for one in facts.values())
    if not (by_labels or with_heads or vote.augmentation_neighbours) or len(gallery) < MIN_IMAGES:
        return None
    kept = RawEmbeddings(cache, version.manifest.ensemble)
    digests = [bytes.fromhex(gallery.sha256(row)) for row in range(len(gallery))]
    try:
        raw = {member.name: kept.raw(member.name, digests) for member in members}
    except (KeyError, OSError):
        return None
    dims = [vote.dims.get(member.name, member.dim) for member in members]
    spaces = [
        member_space(member, raw.pop(member.name), len(gallery), dim, dim)
        for member, dim in zip(members, dims, strict=True)
    ]
    codes = gallery.label_codes.astype(np.int64)
    splits = [_held_out(split, codes) for split in cross_splits(codes, [digest.hex() for digest in digests])]
    metrics = FoldMetrics(spaces, codes, splits, with_labels=by_labels)
    widths = [min(dim, space.components.shape[1]) for dim, space in zip(dims, spaces, strict=True)]
    del spaces  # which hold the raw vectors
    place = "cuda" if choose_runtime(settings.device, "torch") == "torch-cuda" else "cpu"
    weights = np.array([vote.weights[member.name] for member in members], np.float32)
    every, fold_of, folds = np.zeros((len(gallery), sum(widths)), np.float32), np.full(len(gallery), -1), []
    images = list(gallery.images())
    for number, split in enumerate(splits):
        if on_progress is not None:
            on_progress(Progress("fit folds", number, len(splits)))
        by_member = list(metrics.project([(width,) for width in widths], number).values())
        fold_of[split.queries] = number
        every[split.queries] = np.concatenate([z[split.queries] for z in by_member], axis=1)
        part = Gallery.from_images([images[row] for row in split.gallery])
        searched = [z[split.gallery] for z in by_member]
        heads = {}
        if with_heads:
            heads = {m.name: fit_head(z, part.label_codes, len(part.labels))
                     for m, z in zip(members, searched, strict=True)}  # fmt: skip
        if vote.augmentation_neighbours:
            joined = augmented(
                np.concatenate(searched, axis=1), widths, vote.augmentation_neighbours, vote.augmentation_exponent,
                weights,
            )  # fmt: skip
            searched = np.split(joined, np.cumsum(widths)[:-1], axis=1)
        # In half precision, as an index stores them.
        halves = [z.astype(np.float16) for z in searched]
        retriever = Retriever(
            part, published.members, halves, [version.projection(m.name) for m in members], vote, [None] * len(halves),
            "exact", place, heads,
        )  # fmt: skip
        folds.append(_Fold(split.gallery, retriever))
    return CrossFitted(published, folds, every, fold_of)


def _held_out(split: Split, codes: Ints) -> Split:
    """A split whose classes are those of the whole gallery: images that are all there is of their class stay in it.

    Nobody could find their like, and the folds' indexes number the classes alike.
    """
    stay = split.queries[~np.isin(codes[split.queries], codes[split.gallery])]
    if not len(stay):
        return split
    return Split(
        np.union1d(split.teachers, stay), np.union1d(split.gallery, stay), np.setdiff1d(split.queries, stay)
    )  # fmt: skip
