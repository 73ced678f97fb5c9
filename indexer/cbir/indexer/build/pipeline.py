"""Build or update an index: scan, compare with the live version, embed what is new, project, publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cbir.core.artifacts import IndexStore, IndexVersion, SigningKey
from cbir.core.ensemble import EnsembleSpec, has_text_tower, member_fingerprint
from cbir.core.errors import ArtifactError, SourceError
from cbir.core.search import LocalStore, VectorStore
from cbir.core.vote import VoteSettings
from cbir.indexer.build.decoding import decoding_facts
from cbir.indexer.build.image_facts import SkippedImage
from cbir.indexer.build.image_sources import ImageSources
from cbir.indexer.build.runner import Progress, RunSettings, open_runner

__all__ = ["FitSettings", "ImageSources", "IndexReport", "build"]

#: Reasons for which a skipped image is tried at every run: giving read permission does not change a file's stamp.
_TRY_AGAIN = ("IMAGE_UNREADABLE", "IMAGE_MISSING")
#: Images that may vanish while they are read: so many, or one of so many.
_VANISHED, _VANISHED_SHARE = 10, 10


@dataclass(frozen=True)
class FitSettings:
    """What the indexer learns from the gallery.

    Attributes:
        pseudo_labels: Fit GLRT on nearest neighbours instead of labels, even if the gallery has labels.
        label_share: lambda of the label vote, 0 for none; None for the tuned value, or 0 without tuning.
        index: Vector index in place of the members' own ``index``.
        sample: Images on which metrics and heads are fitted, drawn from each class in proportion; None for 50,000.  A
            smaller gallery is fitted whole; a larger one keeps its fit until a twentieth of it has changed.
        rebuild: Publish a new version even if nothing has changed, for instance to replace a damaged one.
        keep_tuning: Keep what ``cbir tune`` chose, as long as the ensemble is the same.
    """

    pseudo_labels: bool = False
    label_share: float | None = None
    index: str | None = None
    rebuild: bool = False
    keep_tuning: bool = True
    sample: int | None = None


@dataclass(frozen=True)
class IndexReport:
    """What one run did; ``embedded + reused == images``.

    Attributes:
        embedded: Images that were embedded in this run.
        added: Images that the previous version did not have.
        changed: Images whose bytes differ from the previous version.
        removed: Images of the previous version that are gone.
        published: Whether a new version was published; False if nothing had changed.
    """

    index: str
    version: str
    images: int
    embedded: int
    reused: int
    added: int
    changed: int
    removed: int
    skipped: tuple[SkippedImage, ...]
    seconds: float
    published: bool = True
    fitted_on: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The document that ``cbir index --json`` prints."""
        skipped = [{"uri": s.uri, "reason": s.reason, "code": s.code} for s in self.skipped]
        return {**vars(self), "skipped": skipped, "fitted_on": dict(self.fitted_on), "seconds": round(self.seconds, 3)}


def build(
    sources: ImageSources,
    out: Path,
    ensemble: EnsembleSpec,
    run_settings: RunSettings | None = None,
    fit: FitSettings | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    key: SigningKey | None = None,
    vectors: VectorStore | None = None,
) -> IndexReport:
    """Bring the index at ``out`` up to date with the sources and publish a new version.

    Args:
        key: Signs the version.
        vectors: Where the vectors are kept; None: in the index's files.

    Raises:
        SourceError: There is no image that can be indexed; the live version stays.
        ConfigurationError, EnsembleError: A member lacks something; told before any image is read.
        ArtifactError: The folder cannot be written, or another indexer has locked it.
        KeyboardInterrupt: The user interrupted; embeddings are kept for the next run, and the live version stays.
    """
    started = time.monotonic()
    run_settings, fit = run_settings or RunSettings(), fit or FitSettings()
    report = on_progress or (lambda _: None)
    vectors = vectors or LocalStore()
    vectors.check([member.name for member in ensemble.members])
    store = IndexStore(out, key=key, on_live=vectors.make_live)
    decoding = decoding_facts(run_settings.limits)
    settings = {
        "decoding": decoding,
        "pseudo_labels": fit.pseudo_labels,
        "label_share": fit.label_share,
        "index": fit.index,
        "keep_tuning": fit.keep_tuning,
    }
    with ExitStack() as held:
        previous, stays = None, False
        if there := store.has_current():
            held.enter_context(store.lock())
            report(Progress("scan", 0, 0))
            previous = _open_live(store)
            # Without keep_tuning, a live version that was tuned cannot stay, even if nothing else has changed.
            stays = (
                previous is not None
                and not fit.rebuild
                and (fit.keep_tuning or not previous.vote.tuned)
                and previous.manifest.store.get("kind", "local") == vectors.kind
            )
            if previous and stays and _same_make(previous, ensemble, settings) and _is_known(previous, sources):
                return _nothing_new(out, previous, _skipped_before(previous), started)
        # Imported now: they bring libraries that take seconds, and where nothing is new there is no use for them.
        from cbir.core.machine import keep_compiled
        from cbir.indexer.build.assembly import PlannedGallery
        from cbir.indexer.build.fitting import FIT_SAMPLE
        from cbir.indexer.build.live_rows import live_rows
        from cbir.indexer.build.plan import Plan
        from cbir.indexer.build.publishing import write_version
        from cbir.indexer.build.requirements import check_requirements
        from cbir.indexer.build.version_content import KeptRows, VersionContent

        keep_compiled()
        check_requirements(ensemble, fit.index, out / "cache")
        if not there:
            held.enter_context(store.lock())
        plan = held.enter_context(Plan(out))
        report(Progress("scan", 0, 0))
        plan.find(sources)
        run = open_runner(ensemble, out / "cache", run_settings, on_progress)
        known = run.embeddings
        report(Progress("compare", 0, plan.count))
        plan.compare(sources, live_rows(previous), known.holds, _refused(previous, decoding), again=fit.rebuild)
        read = embedded = 0
        todo = plan.todo_count
        for block in run.run(plan.todo(), sources, todo):
            plan.done(block.images, block.skipped)
            read += len(block.images)
            embedded += len(block.embedded)
        _check_still_there(plan.skipped, todo)
        problems = [SkippedImage(p.uri, p.reason, "SOURCE_PROBLEM", "") for p in (*sources.problems, *plan.twins)]
        skipped = (*problems, *plan.skipped)
        same = previous and stays and plan.unchanged and not read and _same_make(previous, ensemble, settings)
        if previous and same and {s["uri"] for s in previous.manifest.skipped} == {s.uri for s in skipped}:
            return _nothing_new(out, previous, skipped, started)
        # Now, as what follows reads all of it, and many small blocks are read slowly.
        known.compact()
        # An image that the scan no longer finds, or that cannot be read any more, leaves the index here.
        count, added, changed = plan.finish()
        if not count:
            example = f"; the first was {skipped[0].uri}: {skipped[0].reason}" if skipped else ""
            raise SourceError(f"none of the {plan.count} images could be read{example}", reason="SOURCE_EMPTY")
        before = previous.manifest.images if previous else 0
        removed = before - (count - added)
        live = previous if previous and not fit.rebuild and _prints(previous) == dict(known.fingerprints) else None
        writer = store.begin()
        try:
            gallery = PlannedGallery(plan, count, live, known.facts_of)
            content = VersionContent(
                gallery,
                ensemble,
                lambda member: known.vectors(member, gallery.digests),
                known.fingerprints,
                _vote(previous, ensemble, fit),
                fit.pseudo_labels,
                fit.index,
                settings,
                [{"uri": s.uri, "reason": s.reason, "code": s.code, "stamp": s.stamp} for s in skipped],
                run_settings.device,
                fit.sample or FIT_SAMPLE,
                KeptRows(live, gallery.live_rows, added + changed + removed)
                if live and not live.manifest.store
                else None,
                sources.read_parts(),
            )
            version = write_version(writer, content, report, vectors)
        except BaseException:
            writer.abandon()
            raise
    return IndexReport(
        str(out), version.name, count, embedded, count - embedded, added, changed, removed, skipped,
        time.monotonic() - started, True,
        {name: str(facts["fitted_on"]) for name, facts in version.manifest.members.items()},
    )  # fmt: skip


def _open_live(store: IndexStore) -> IndexVersion | None:
    if not store.has_current():
        return None
    try:
        version = store.open()
        # Looked at now, so that a damaged table is noticed here.
        return version if version.has_intact_table() else None
    except ArtifactError:
        # A damaged version is rebuilt; its embeddings are still in the cache.
        return None


def _refused(previous: IndexVersion | None, decoding: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, str]]:
    """What need not be tried again, by uri and stamp: not what other limits or a program that read less refused."""
    if previous is None or previous.manifest.settings.get("decoding") != decoding:
        return {}
    return {(s["uri"], s["stamp"]): s for s in previous.manifest.skipped if s["code"] not in _TRY_AGAIN}


def _prints(version: IndexVersion) -> dict[str, str]:
    return {name: str(facts["fingerprint"]) for name, facts in version.manifest.members.items()}


def _is_known(previous: IndexVersion, sources: ImageSources) -> bool:
    """Whether the sources tell without a scan that they are as they were, and nothing need be tried again."""
    again = any(s["code"] in _TRY_AGAIN for s in previous.manifest.skipped)
    return not again and sources.same_as(previous.sources())


def _skipped_before(previous: IndexVersion) -> tuple[SkippedImage, ...]:
    return tuple(SkippedImage(s["uri"], s["reason"], s["code"], s["stamp"]) for s in previous.manifest.skipped)


def _nothing_new(out: Path, previous: IndexVersion, skipped: tuple[SkippedImage, ...], started: float) -> IndexReport:
    count = previous.manifest.images
    return IndexReport(
        str(out), previous.name, count, 0, count, 0, 0, 0, skipped, time.monotonic() - started, False,
        {name: str(facts["fitted_on"]) for name, facts in previous.manifest.members.items()},
    )  # fmt: skip


def _check_still_there(skipped: Sequence[SkippedImage], todo: int) -> None:
    """Refuse to publish without images that were there when the sources were scanned.

    Single files vanish while a folder is in use; where many do, a disk was taken out or a server went away.

    Raises:
        SourceError: ``SOURCE_VANISHED``.
    """
    gone = [image for image in skipped if image.code == "IMAGE_MISSING"]
    if len(gone) > max(_VANISHED, todo // _VANISHED_SHARE):
        raise SourceError(
            f"{len(gone):,} images vanished while they were read, the first of them {gone[0].uri}: is its disk or "
            "server still there? The live version stays as it is; what is embedded is kept for the next run",
            reason="SOURCE_VANISHED",
        )


def _same_make(previous: IndexVersion, ensemble: EnsembleSpec, settings: Mapping[str, Any]) -> bool:
    """Whether a new version of the same images would be the same as the live one."""
    manifest = previous.manifest
    return (
        _prints(previous) == {m.name: member_fingerprint(m, ensemble.crop) for m in ensemble.members}
        and all(bool(manifest.members[m.name].get("text")) == has_text_tower(m) for m in ensemble.members)
        and manifest.ensemble.to_json() == ensemble.to_json()
        and dict(manifest.settings) == dict(settings)
    )


def _vote(previous: IndexVersion | None, ensemble: EnsembleSpec, fit: FitSettings) -> VoteSettings:
    """The live version's tuned vote if the ensemble is the same, otherwise that of the ensemble file."""
    if previous and fit.keep_tuning and previous.vote.tuned and previous.manifest.ensemble == ensemble:
        if fit.label_share is None:
            return previous.vote
        return replace(previous.vote, label_share=fit.label_share, calibration=None)
    return VoteSettings({m.name: m.weight for m in ensemble.members}, label_share=fit.label_share or 0.0)
