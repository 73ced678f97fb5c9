"""An ablation of the retrieval recipe: what each part of it gains on one gallery and one set of queries.

Projections are fitted anew on the raw embeddings in the index's cache.  Every step is ranked by the same retriever as
in the server, so the last figure is that of the index itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import IndexVersion
from cbir.core.ensemble import choose_runtime
from cbir.core.evaluation import Measures, bootstrap_interval
from cbir.core.metric import MIN_IMAGES, Projection, augmented
from cbir.core.search import Retriever, Searcher
from cbir.core.vote import VoteSettings, fit_head
from cbir.indexer.build import Progress, RawEmbeddings, RunSettings, fit_members
from cbir.indexer.evaluate.answers import SHOWN, Judge, ask, measured
from cbir.indexer.evaluate.query_set import QuerySet

__all__ = ["STEPS", "RecipeTable", "Step", "StepResult", "measure_recipe"]

#: Raw embeddings of more bytes than this are not loaded at once; the table is then left out.
MOST_BYTES = 4 * 2**30

Floats = NDArray[np.float32]
_Fit = tuple[str, bool]


@dataclass(frozen=True)
class Step:
    """One row of the table; to add one, add an entry to :data:`STEPS`.

    Attributes:
        metric: cosine (raw embeddings in full dimension), pca or glrt.
        labels: Whether the metric is learnt from the gallery's labels; the step is left out if they are too few.
        vote: Vote settings that differ from the defaults.
        heads: Whether linear heads take part in the label vote.
        over: The step that the gain is measured against; None for the one before.
    """

    name: str
    metric: Literal["cosine", "pca", "glrt"]
    labels: bool = False
    vote: Mapping[str, Any] = field(default_factory=dict)
    heads: bool = False
    over: str | None = None

    @property
    def fitted_on(self) -> frozenset[str]:
        """What :func:`fit_members` may report if the gallery allows this step."""
        if self.metric == "glrt":
            return frozenset({"labels"} if self.labels else {"pseudo-labels", "neighbours"})
        return frozenset({"cosine": {"none"}, "pca": {"gallery"}}[self.metric])

    @property
    def fit(self) -> _Fit:
        """What the projections depend on; steps in which it is equal share them."""
        return self.metric, self.labels


_SHARPENED = {"augmentation_neighbours": 5, "expansion_neighbours": 5}
_VOTE = {"neighbours": 10, "temperature": 0.05, "label_share": 1.0, "head_share": 0.0}
_NO_LABELS, _LABELS = "GLRT, no labels", "GLRT, gallery labels"

#: Each builds on the one before it or on the one that it names; the published index comes last.
STEPS = (
    Step("cosine", "cosine"),
    Step("centred PCA", "pca"),
    Step(_NO_LABELS, "glrt"),
    Step("+ augmentation, expansion (no labels)", "glrt", vote=_SHARPENED),
    Step(_LABELS, "glrt", labels=True, over=_NO_LABELS),
    Step("+ augmentation, expansion", "glrt", labels=True, vote=_SHARPENED),
    Step("+ label vote of the neighbours", "glrt", labels=True, vote=_SHARPENED | _VOTE),
    Step("+ linear heads in the vote", "glrt", labels=True, vote=_SHARPENED | _VOTE | {"head_share": 0.5}, heads=True),
)
PUBLISHED = "the index as published"


@dataclass(frozen=True)
class _Fitted:
    """Projections and gallery vectors (N, dim) by member, and what each projection was fitted on."""

    projections: list[Projection]
    vectors: list[Floats]
    sources: list[str]


@dataclass(frozen=True)
class StepResult:
    """MAP@10 after one step.

    Attributes:
        interval: 95 % bootstrap interval of ``ensemble``.
        over: The step that ``gain`` is measured against; None for the first.
        gain_interval: 95 % bootstrap interval of the gain, paired by query.
    """

    name: str
    ensemble: float
    members: Mapping[str, float]
    interval: tuple[float, float]
    over: str | None
    gain: float | None
    gain_interval: tuple[float, float] | None


@dataclass(frozen=True)
class RecipeTable:
    """The results of all steps.

    Attributes:
        note: What was left out, and why; None if nothing was.
    """

    steps: tuple[StepResult, ...]
    note: str | None = None


def measure_recipe(
    version: IndexVersion,
    published: Searcher,
    queries: QuerySet,
    judge: Judge,
    cache: Path,
    settings: RunSettings,
    on_progress: Callable[[Progress], None] | None = None,
) -> RecipeTable:
    """Measure every step that this gallery allows.

    Args:
        published: The retriever of the version itself.
        cache: Folder with the raw embeddings of gallery and queries.
    """
    gallery, ensemble = published.gallery, version.manifest.ensemble
    kept = RawEmbeddings(cache, ensemble)
    width = sum(int(facts["raw_dim"]) for facts in version.manifest.members.values())
    if len(gallery) * width * 4 > MOST_BYTES:
        return RecipeTable((), f"the gallery's raw embeddings take more than {MOST_BYTES >> 30} GiB of memory")
    digests = [bytes.fromhex(gallery.sha256(row)) for row in range(len(gallery))]
    asked = [bytes.fromhex(digest) for digest in queries.sha256]
    try:
        raw = {member: kept.raw(member, digests) for member in published.members}
        raw_queries = {member: kept.raw(member, asked) for member in published.members}
    except (KeyError, OSError):
        return RecipeTable(
            (),
            "the index's cache no longer holds the raw embeddings, from which the steps are fitted: "
            "`cbir index` of the same images fills it again",
        )
    place = "cuda" if choose_runtime(settings.device, "torch") == "torch-cuda" else "cpu"
    results: list[StepResult] = []
    left_out: list[str] = []
    ap: dict[str, Sequence[float]] = {}
    fitted: tuple[_Fit, _Fitted] | None = None
    for i, step in enumerate(STEPS):
        _tell(on_progress, step.name, i)
        if fitted is None or fitted[0] != step.fit:
            fitted = (step.fit, _fit(version, raw, step, gallery.label_codes))
        if not step.fitted_on.issuperset(fitted[1].sources):
            left_out.append(step.name)
            continue
        retriever = _retriever(version, published, step, fitted[1], place)
        projected = replace(queries, vectors=retriever.project(raw_queries))
        results.append(_measure(step.name, retriever, projected, judge, ap, step.over))
    _tell(on_progress, PUBLISHED, len(STEPS))
    tuned = " (tuned)" if version.vote.tuned else ""
    results.append(_measure(PUBLISHED + tuned, published, queries, judge, ap, None))
    return RecipeTable(tuple(results), _explain(left_out, len(gallery)))


def _retriever(version: IndexVersion, published: Searcher, step: Step, fitted: _Fitted, place: str) -> Retriever:
    gallery, members = published.gallery, version.manifest.ensemble.members
    vote = VoteSettings({m.name: m.weight for m in members}, **step.vote)
    vectors, heads = fitted.vectors, {}
    if step.heads:
        heads = {
            member.name: fit_head(z, gallery.label_codes, len(gallery.labels))
            for member, z in zip(members, vectors, strict=True)
        }
    if vote.augmentation_neighbours:
        dims = [z.shape[1] for z in vectors]
        weights = np.array([m.weight for m in members], np.float32)
        joined = augmented(
            np.concatenate(vectors, axis=1), dims, vote.augmentation_neighbours, vote.augmentation_exponent, weights
        )
        vectors = np.split(joined, np.cumsum(dims)[:-1], axis=1)
    # In float16 as in an index, so that the figures equal those of an index.
    halves = [z.astype(np.float16) for z in vectors]
    exact = [None] * len(halves)
    return Retriever(gallery, published.members, halves, fitted.projections, vote, exact, "exact", place, heads)


def _explain(left_out: Sequence[str], images: int) -> str | None:
    if not left_out:
        return None
    why = f"fewer than {MIN_IMAGES} images" if images < MIN_IMAGES else "too few labels, or images that are all alike"
    return f"the gallery has {why}, so nothing can be learnt for: {', '.join(left_out)}"


def _tell(on_progress: Callable[[Progress], None] | None, name: str, done: int) -> None:
    if on_progress is not None:
        on_progress(Progress(f"recipe: {name}", done, len(STEPS) + 1))


def _measure(
    name: str,
    retriever: Searcher,
    queries: QuerySet,
    judge: Judge,
    ap: dict[str, Sequence[float]],
    over: str | None,
) -> StepResult:
    """Measure one step; ``ap`` has AP@10 of every query that counts by step, and this step's is added."""

    def search(weights: Floats | None) -> Measures:
        return measured(ask(retriever, queries, judge, weights, deepest=SHOWN), queries.labels)

    together = search(None)
    alone = np.eye(len(retriever.members), dtype=np.float32)
    members = {member: search(alone[m]).map_at_10 for m, member in enumerate(retriever.members)}
    gain, interval = None, None
    base = over if over in ap else next(reversed(ap), None)
    if base is not None:
        differences = np.subtract(together.ap, ap[base])
        gain, interval = float(differences.mean()), bootstrap_interval(differences.tolist())
    ap[name] = together.ap
    return StepResult(name, together.map_at_10, members, bootstrap_interval(together.ap), base, gain, interval)


def _fit(version: IndexVersion, raw: Mapping[str, Floats], step: Step, codes: NDArray[np.int32]) -> _Fitted:
    members = [
        replace(member, metric=step.metric, dim=raw[member.name].shape[1] if step.metric == "cosine" else member.dim)
        for member in version.manifest.ensemble.members
    ]
    fitted = fit_members(raw.__getitem__, members, codes if step.labels else None)
    projections = [fitted[member.name][0] for member in members]
    vectors = [projection.apply(raw[member.name]) for member, projection in zip(members, projections, strict=True)]
    return _Fitted(projections, vectors, [fitted[member.name][1] for member in members])
