"""The data for tuning: raw embeddings, labels, queries, and label priors by class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import IndexVersion
from cbir.core.errors import ArtifactError, SourceError
from cbir.core.search import names_trust, zero_shot_probabilities
from cbir.indexer.build import ImageSources, Runner, gathered
from cbir.indexer.evaluate import Split, cross_splits

__all__ = ["TuningMaterial", "gather"]

Floats = NDArray[np.float32]

#: Most queries: enough for a standard error of MAP@10 of at most 0.005 (far less for the difference of two votes), and
#: time and memory do not grow with the square of the gallery.
MOST_QUERIES = 8_000


@dataclass(frozen=True)
class TuningMaterial:
    """N images: the rows of the gallery, then given queries.

    Attributes:
        raw: (N, raw_dim) unit vectors by member.
        codes: (N,) class numbers; negative without a label.
        names: (N, C) label priors by member number, see :class:`cbir.indexer.tune.score_table.ScoreTable`.
        source: Where the queries come from.
    """

    raw: Mapping[str, Floats]
    codes: NDArray[np.int64]
    splits: Sequence[Split]
    names: Mapping[int, Floats]
    source: str


def gather(version: IndexVersion, run: Runner, queries: ImageSources | None) -> TuningMaterial:
    """Take the gallery's raw embeddings from the cache, and embed the queries.

    Args:
        queries: Labelled query images; None for the gallery's own, each searched without images of the same bytes.

    Raises:
        ArtifactError: The cache of raw embeddings is gone.
        SourceError: None of the queries can be used.
    """
    gallery, members = version.gallery, [m.name for m in version.manifest.ensemble.members]
    digests = [bytes.fromhex(gallery.sha256(row)) for row in range(len(gallery))]
    if not all(run.embeddings.known(digest) for digest in digests):
        raise ArtifactError(
            f"the raw embeddings of {version.path} are no longer in its cache, and tuning starts from them: run "
            "`cbir index` on the same images once more",
            reason="CACHE_MISSING",
        )
    raw = {name: run.embeddings.raw(name, digests) for name in members}
    codes = gallery.label_codes.astype(np.int64)
    if queries is None:
        hashes = [gallery.sha256(row) for row in range(len(gallery))]
        splits = cross_splits(codes, hashes, most=MOST_QUERIES)
        return TuningMaterial(raw, codes, splits, _names(version, raw), "the gallery, cross-fitted in five folds")
    place = {label: code for code, label in enumerate(gallery.labels)}
    images = [image for image in queries.scan() if image.label in place]
    facts, _, _ = gathered(run.run(images, queries, len(images)))
    own = set(digests)
    usable = [image for image in images if image.id in facts and facts[image.id].sha256 not in own]
    if not usable:
        raise SourceError(
            "none of the query images can be used: they need labels that the gallery has, and must not be its own "
            "files",
            reason="NO_QUERIES",
        )
    asked = {name: run.embeddings.raw(name, [facts[image.id].sha256 for image in usable]) for name in members}
    count = len(codes)
    both = np.concatenate([codes, [place[str(image.label)] for image in usable]])
    split = Split(np.flatnonzero(codes >= 0), np.arange(count), np.arange(count, len(both)))
    raw = {name: np.concatenate([raw[name], asked[name]]) for name in members}
    return TuningMaterial(raw, both, [split], _names(version, raw), "given query images")


def _names(version: IndexVersion, raw: Mapping[str, Floats]) -> dict[int, Floats]:
    result = {}
    for m, member in enumerate(version.manifest.ensemble.members):
        if (found := version.classes(member.name)) is None:
            continue
        accuracy = float(version.manifest.members[member.name]["zero_shot_accuracy"])
        trust = names_trust(accuracy, version.gallery.label_codes)
        if trust > 0:
            result[m] = trust * zero_shot_probabilities(raw[member.name], *found)
    return result
