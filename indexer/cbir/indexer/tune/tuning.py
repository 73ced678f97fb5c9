"""Tuning: choose a better vote, measured on queries whose labels nothing was fitted to, and publish it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from cbir.core.artifacts import IndexStore, IndexVersion, SigningKey
from cbir.core.ensemble import choose_runtime
from cbir.core.search import LocalStore, VectorStore
from cbir.core.vote import VoteSettings
from cbir.indexer.build import EmbeddingRun, ImageSources, Progress, RunSettings, VersionContent, write_version
from cbir.indexer.tune.budget import SearchBudget
from cbir.indexer.tune.time_left import TimeLeft
from cbir.indexer.tune.tuning_material import TuningMaterial, gather
from cbir.indexer.tune.tuning_report import TuningReport
from cbir.indexer.tune.vote_choice import VoteChoice

__all__ = ["tune"]


def tune(
    index: Path,
    queries: ImageSources | None = None,
    settings: RunSettings | None = None,
    budget: SearchBudget | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    use_labels: bool = True,
    key: SigningKey | None = None,
    vectors: VectorStore | None = None,
) -> TuningReport:
    """Search for a better vote and publish it as a new version if it is a gain.

    If the whole vote is not a gain, the best of its parts that is one is published: expansion, weights or label vote.
    If the present vote is the best one, a version with only a new calibration is published, if that is new.

    Args:
        queries: Labelled query images; None for the gallery's own, each searched without images of the same bytes.
        use_labels: False tunes as if the gallery had no labels; whether the metric uses labels was chosen in indexing.
        key: Private key to sign the version with, if any.
        vectors: Where the vectors are kept; None: in the index's files.

    Raises:
        ArtifactError: There is no index, or its cache of raw embeddings is gone.
        SourceError: None of the queries can be used.
    """
    settings, budget = settings or RunSettings(), budget or SearchBudget()
    report = on_progress or (lambda _: None)
    vectors = vectors or LocalStore()
    store = IndexStore(index, key=key, on_live=vectors.make_live)
    with store.lock():
        version = store.open()
        version.manifest.check_store(vectors.kind, version.path)
        version.check_ensemble(version.manifest.ensemble)
        run = EmbeddingRun(version.manifest.ensemble, index / "cache", settings, on_progress)
        material = gather(version, run, queries)
        device = "cuda" if choose_runtime(settings.device, "torch") == "torch-cuda" else "cpu"
        choice = VoteChoice(version, material, budget, TimeLeft(report, budget.trials), device)
        result, worthwhile = _judged(choice, choice.whole() if use_labels else choice.without_labels(), version.vote)
        if not worthwhile:
            return replace(result, index=str(index))
        published = _publish(store, version, material, result.vote, report, vectors)
    return replace(result, index=str(index), version=published.name)


def _publish(
    store: IndexStore,
    version: IndexVersion,
    material: TuningMaterial,
    vote: VoteSettings,
    report: Callable[[Progress], None],
    vectors: VectorStore,
) -> IndexVersion:
    manifest, count = version.manifest, len(version.gallery)
    content = VersionContent(
        version.gallery,
        manifest.ensemble,
        lambda name: material.raw[name][:count],
        {name: str(facts["fingerprint"]) for name, facts in manifest.members.items()},
        vote,
        bool(manifest.settings.get("pseudo_labels")),
        manifest.settings.get("index"),
        manifest.settings,
        manifest.skipped,
        sources=told if isinstance(told := version.sources(), list) else (),
    )
    writer = store.begin()
    try:
        return write_version(writer, content, report, vectors)
    except BaseException:
        writer.abandon()
        raise


def _judged(choice: VoteChoice, result: TuningReport, live: VoteSettings) -> tuple[TuningReport, bool]:
    """The result to report, and whether to publish it."""
    if _same_vote(result.vote, live):
        # Only the calibration changes; the weights stay exactly as they were.
        stays = replace(live, calibration=result.vote.calibration)
        result = replace(result, vote=stays, held_out=result.before, gain=(0.0, 0.0, 0.0) if result.gain else None)
        return result, stays != live
    if result.gain is None or result.gain[0] > 0:
        return result, True
    steps = choice.single_steps()
    told = replace(result, steps=tuple(step for step, _ in steps), whole_gain=result.gain)
    for step, part in steps:
        # The best of several parts may be best by chance, so the whole interval of its gain must lie above 0.
        if step.gain[1] > 0 and not _same_vote(part.vote, live):
            return replace(part, steps=told.steps, whole_gain=result.gain, taken=step.name), True
    return replace(told, rejected=True), False


def _same_vote(one: VoteSettings, other: VoteSettings) -> bool:
    """Whether two votes give the same ranking."""
    weights = np.array([(one.weights[name], other.weights[name]) for name in one.weights])
    rest = [replace(vote, weights={}, calibration=None, tuned=True) for vote in (one, other)]
    return rest[0] == rest[1] and np.allclose(weights[:, 0], weights[:, 1])
