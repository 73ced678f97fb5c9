"""Build or update an index: scan, compare with the live version, embed what is new, project, publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from cbir.core.artifacts import Gallery, GalleryImage, IndexStore, IndexVersion, SigningKey
from cbir.core.ensemble import EnsembleSpec, has_text_tower
from cbir.core.errors import ArtifactError, SourceError
from cbir.core.machine import keep_compiled
from cbir.core.search import LocalStore, VectorStore
from cbir.core.vote import VoteSettings
from cbir.indexer.build.decoding import decoding_facts
from cbir.indexer.build.embedding import Progress, RunSettings
from cbir.indexer.build.image_facts import ImageFacts, SkippedImage
from cbir.indexer.build.publishing import VersionContent, write_version
from cbir.indexer.build.raw_embeddings import RawEmbeddings
from cbir.indexer.build.requirements import check_requirements
from cbir.indexer.build.runner import gathered
from cbir.indexer.build.runners import open_runner
from cbir.indexer.sources import ScanProblem, SourceImage

__all__ = ["FitSettings", "ImageSources", "IndexReport", "build"]

#: Reasons for which a skipped image is tried at every run: giving read permission does not change a file's stamp.
_TRY_AGAIN = ("IMAGE_UNREADABLE",)


class ImageSources(Protocol):
    """The images to index (see :func:`cbir.indexer.sources.open_sources`)."""

    @property
    def problems(self) -> Sequence[ScanProblem]:
        """What the last scan left out."""
        ...

    def scan(self) -> list[SourceImage]:
        """All images, with distinct ids."""
        ...

    def read(self, image: SourceImage) -> bytes:
        """The bytes of an image; thread-safe."""
        ...


@dataclass(frozen=True)
class FitSettings:
    """What the indexer learns from the gallery.

    Attributes:
        pseudo_labels: Fit GLRT on nearest neighbours instead of labels, even if the gallery has labels.
        label_share: lambda of the label vote, 0 for none; None for the tuned value, or 0 without tuning.
        index: Vector index in place of the members' own ``index``.
        rebuild: Publish a new version even if nothing has changed, for instance to replace a damaged one.
        keep_tuning: Keep what ``cbir tune`` chose, as long as the ensemble is the same.
    """

    pseudo_labels: bool = False
    label_share: float | None = None
    index: str | None = None
    rebuild: bool = False
    keep_tuning: bool = True


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
    keep_compiled()
    run_settings, fit = run_settings or RunSettings(), fit or FitSettings()
    report = on_progress or (lambda _: None)
    check_requirements(ensemble, fit.index, out / "cache")
    vectors = vectors or LocalStore()
    vectors.check([member.name for member in ensemble.members])
    store = IndexStore(out, key=key, on_live=vectors.make_live)
    report(Progress("scan", 0, 0))
    # Rows are in the order of ids, so that ties between equal scores are broken by id.
    found = sorted(sources.scan(), key=lambda image: image.id)
    with store.lock():
        previous = _open_live(store)
        run = open_runner(ensemble, out / "cache", run_settings, on_progress)
        decoding = decoding_facts(run_settings.limits)
        plan = _Plan.make(found, None if fit.rebuild else previous, run.embeddings, decoding)
        settings = {
            "decoding": decoding,
            "pseudo_labels": fit.pseudo_labels,
            "label_share": fit.label_share,
            "index": fit.index,
            "keep_tuning": fit.keep_tuning,
        }
        problems = [SkippedImage(p.uri, p.reason, "SOURCE_PROBLEM", "") for p in sources.problems]
        facts, newly_skipped, fresh = gathered(run.run(plan.todo, sources, len(plan.todo)))
        skipped = (*problems, *plan.skipped, *newly_skipped)
        # Without keep_tuning, a live version that was tuned cannot stay, even if nothing else has changed.
        stays = previous is not None and (fit.keep_tuning or not previous.vote.tuned)
        if (
            previous
            and stays
            and plan.unchanged
            and not facts
            and previous.manifest.store.get("kind", "local") == vectors.kind
            and _same_make(previous, run.embeddings, ensemble, settings, skipped)
        ):
            count = len(previous.gallery)
            return IndexReport(
                str(out), previous.name, count, 0, count, 0, 0, 0, skipped, time.monotonic() - started, False,
                {name: str(facts["fitted_on"]) for name, facts in previous.manifest.members.items()},
            )  # fmt: skip
        facts.update(plan.facts)
        # An image that the scan no longer finds, or that cannot be read any more, leaves the index here.
        images = [_gallery_image(image, facts[image.id]) for image in found if image.id in facts]
        if not images:
            example = f"; the first was {skipped[0].uri}: {skipped[0].reason}" if skipped else ""
            raise SourceError(f"none of the {len(found)} images could be read{example}", reason="SOURCE_EMPTY")
        writer = store.begin()
        try:
            gallery = Gallery.from_images(images)
            digests = [bytes.fromhex(gallery.sha256(row)) for row in range(len(gallery))]
            content = VersionContent(
                gallery,
                ensemble,
                lambda member: run.embeddings.raw(member, digests),
                run.embeddings.fingerprints,
                _vote(previous, ensemble, fit),
                fit.pseudo_labels,
                fit.index,
                settings,
                [{"uri": s.uri, "reason": s.reason, "code": s.code, "stamp": s.stamp} for s in skipped],
                run_settings.device,
            )
            version = write_version(writer, content, report, vectors)
        except BaseException:
            writer.abandon()
            raise
        run.embeddings.compact()
    embedded = len({image.sha256 for image in images} & {digest.hex() for digest in fresh})
    added, changed, removed = _differences(previous, images)
    return IndexReport(
        str(out), version.name, len(images), embedded, len(images) - embedded, added, changed, removed, skipped,
        time.monotonic() - started, True,
        {name: str(facts["fitted_on"]) for name, facts in version.manifest.members.items()},
    )  # fmt: skip


def _open_live(store: IndexStore) -> IndexVersion | None:
    if not store.has_current():
        return None
    try:
        version = store.open()
        _ = version.gallery  # read now, so that a damaged gallery is noticed here
        return version
    except ArtifactError:
        # A damaged version is rebuilt; its embeddings are still in the cache.
        return None


@dataclass
class _Plan:
    """Which images must be read, and what the live version and the cache know of the others.

    ``unchanged`` means that every image of the live version is still there, unchanged.
    """

    todo: list[SourceImage]
    facts: dict[str, ImageFacts]
    skipped: list[SkippedImage]
    unchanged: bool

    @classmethod
    def make(
        cls,
        found: Sequence[SourceImage],
        previous: IndexVersion | None,
        embeddings: RawEmbeddings,
        decoding: Mapping[str, Any],
    ) -> _Plan:
        before: dict[str, GalleryImage] = {}
        refused: dict[tuple[str, str], Mapping[str, str]] = {}
        if previous:
            gallery = previous.gallery
            before = {image.id: image for image in gallery.images()}
        # What was refused by other limits, or by a program that read less, is tried again.
        if previous and previous.manifest.settings.get("decoding") == decoding:
            refused = {(s["uri"], s["stamp"]): s for s in previous.manifest.skipped if s["code"] not in _TRY_AGAIN}
        plan = cls([], {}, [], previous is not None)
        kept = 0
        for image in found:
            old = before.get(image.id)
            digest = bytes.fromhex(old.sha256) if old else b""
            if old and (old.uri, old.stamp) == (image.uri, image.stamp) and embeddings.known(digest):
                plan.facts[image.id] = embeddings.facts(digest)
                same = old.label == image.label and dict(old.metadata) == dict(image.metadata)
                plan.unchanged = plan.unchanged and same
                kept += 1
            elif (known := refused.get((image.uri, image.stamp))) is not None:
                plan.skipped.append(SkippedImage(image.uri, known["reason"], known["code"], image.stamp))
            else:
                plan.todo.append(image)
        plan.unchanged = plan.unchanged and kept == len(before)
        return plan


def _same_make(
    previous: IndexVersion,
    embeddings: RawEmbeddings,
    ensemble: EnsembleSpec,
    settings: Mapping[str, Any],
    skipped: Sequence[SkippedImage],
) -> bool:
    """Whether a new version would be the same as the live one."""
    manifest = previous.manifest
    prints = {name: facts["fingerprint"] for name, facts in manifest.members.items()}
    return (
        prints == embeddings.fingerprints
        and all(bool(manifest.members[m.name].get("text")) == has_text_tower(m) for m in ensemble.members)
        and manifest.ensemble.to_json() == ensemble.to_json()
        and dict(manifest.settings) == dict(settings)
        and {s["uri"] for s in manifest.skipped} == {s.uri for s in skipped}
    )


def _gallery_image(image: SourceImage, facts: ImageFacts) -> GalleryImage:
    return GalleryImage(
        image.id, image.uri, image.label, facts.width, facts.height, facts.sha256.hex(), facts.phash, facts.crop,
        image.stamp, dict(image.metadata),
    )  # fmt: skip


def _vote(previous: IndexVersion | None, ensemble: EnsembleSpec, fit: FitSettings) -> VoteSettings:
    """The live version's tuned vote if the ensemble is the same, otherwise that of the ensemble file."""
    if previous and fit.keep_tuning and previous.vote.tuned and previous.manifest.ensemble == ensemble:
        if fit.label_share is None:
            return previous.vote
        return replace(previous.vote, label_share=fit.label_share, calibration=None)
    return VoteSettings({m.name: m.weight for m in ensemble.members}, label_share=fit.label_share or 0.0)


def _differences(previous: IndexVersion | None, images: Sequence[GalleryImage]) -> tuple[int, int, int]:
    """Numbers of images added, changed and removed since the previous version."""
    if previous is None:
        return len(images), 0, 0
    before = {image.id: image.sha256 for image in previous.gallery.images()}
    now = {image.id: image.sha256 for image in images}
    changed = sum(1 for name, digest in now.items() if name in before and before[name] != digest)
    return len(now.keys() - before.keys()), changed, len(before.keys() - now.keys())
