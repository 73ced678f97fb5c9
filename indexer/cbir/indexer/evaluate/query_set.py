"""Labelled queries, embedded and projected: images from other sources, or those of the gallery."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import IndexVersion, gallery_pictures
from cbir.core.errors import SourceError
from cbir.core.files import nfc
from cbir.core.search import JointSpace, Searcher
from cbir.indexer.build import EmbeddingRun, ImageSources, Progress, RunSettings, SkippedImage, gathered

__all__ = ["NamedClasses", "QuerySet", "gallery_queries", "source_queries"]


@dataclass(frozen=True)
class NamedClasses:
    """Label priors of Q queries, by the class names that members with a text tower have embedded.

    Attributes:
        points: (Q, sum of dims) vectors of the queries in the joint space.
    """

    space: JointSpace = field(repr=False)
    points: NDArray[np.float32] = field(repr=False)

    def priors(self, part: slice, weights: NDArray[np.float32]) -> list[NDArray[np.float32] | None]:
        """Label priors of some of the queries, as in the server; ``weights`` (M,) are those of the members."""
        points = self.points[part]
        return self.space.label_priors(points, np.tile(weights, (len(points), 1)))


@dataclass(frozen=True)
class QuerySet:
    """Queries that have been embedded and projected.

    Attributes:
        vectors: (Q, sum of dims).
        labels: Label of each query.
        sha256: Hexadecimal digest of each query's bytes; images with the same bytes never count as hits.
        phashes: (Q,) perceptual hashes.
        skipped: Query images that could not be read.
        unlabelled: Number of images left out because they have no label.
        ids: Name of each query.
        uris: Location of each query's bytes (see :mod:`cbir.core.files.uri`).
        names: Label priors; None if no member has a text tower.
    """

    vectors: NDArray[np.float32]
    labels: list[str]
    sha256: list[str]
    phashes: NDArray[np.uint64]
    skipped: tuple[SkippedImage, ...] = ()
    unlabelled: int = 0
    ids: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    names: NamedClasses | None = None


def source_queries(
    version: IndexVersion,
    retriever: Searcher,
    sources: ImageSources,
    cache: Path,
    settings: RunSettings,
    on_progress: Callable[[Progress], None] | None = None,
) -> QuerySet:
    """Embed the labelled images of sources with the index's ensemble, using the index's cache.

    Embeddings in a precision that is asked for are not cached: they depend on the calibration and the release.

    Raises:
        SourceError: No query image has a label, or none can be read.
        ArtifactError: The weights on this machine are not those of the index.
    """
    ensemble = version.manifest.ensemble
    version.check_ensemble(ensemble)
    found = sources.scan()
    labelled = [image for image in found if image.label is not None]
    if not labelled:
        raise SourceError(
            "the query images have no labels, so nothing says which hits are right: put them into one folder a class, "
            "or use a manifest with a label column",
            reason="NO_LABELS",
        )
    with nullcontext(cache) if settings.precision == "auto" else TemporaryDirectory() as place:
        run = EmbeddingRun(ensemble, Path(place), settings, on_progress, gallery_pictures(version))
        facts, skipped, _ = gathered(run.run(labelled, sources, len(labelled)))
        good = [image for image in labelled if image.id in facts]
        if not good:
            raise SourceError(
                f"none of the query images could be read; the first was {skipped[0].uri}: {skipped[0].reason}",
                reason="SOURCE_EMPTY",
            )
        digests = [facts[image.id].sha256 for image in good]
        raw = {m.name: run.embeddings.raw(m.name, digests) for m in ensemble.members}
    space = JointSpace.load(version, "cpu")
    points = space.side_by_side(raw, len(good)) if space else None
    # A gallery that was made before may spell a class with its accents apart.
    spelt = {nfc(label): label for label in retriever.gallery.labels}
    return QuerySet(
        retriever.project(raw),
        [spelt.get(nfc(str(image.label)), str(image.label)) for image in good],
        [digest.hex() for digest in digests],
        np.array([facts[image.id].phash for image in good], np.uint64),
        tuple(skipped),
        len(found) - len(labelled),
        tuple(image.id for image in good),
        tuple(image.uri for image in good),
        NamedClasses(space, points) if space and points is not None and space.classifies else None,
    )


def gallery_queries(
    retriever: Searcher, most: int | None = None, seed: int = 0, version: IndexVersion | None = None
) -> QuerySet:
    """The labelled images of the gallery as queries, for leave-one-out evaluation.

    Args:
        most: Draw at most so many of them at random.
        version: The version that the retriever was loaded from; None for no label priors.

    Raises:
        SourceError: The gallery has no labels.
    """
    gallery = retriever.gallery
    rows = np.flatnonzero(gallery.label_codes >= 0)
    if not len(rows):
        raise SourceError(
            "the gallery has no labels, so nothing says which hits are right: index one folder a class",
            reason="NO_LABELS",
        )
    unlabelled = len(gallery) - len(rows)
    if most is not None and len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    space = JointSpace.load(version, "cpu") if version else None
    return QuerySet(
        retriever.vectors_of(rows.tolist()),
        [gallery.labels[code] for code in gallery.label_codes[rows]],
        [gallery.sha256(int(row)) for row in rows],
        gallery.phashes[rows],
        unlabelled=unlabelled,
        ids=tuple(gallery.ids[row] for row in rows),
        uris=tuple(gallery.uri(int(row)) for row in rows),
        names=NamedClasses(space, space.vectors_of(rows.tolist())) if space and space.classifies else None,
    )
