"""Write a version: projections, vectors, heads, indexes, vote, manifest.  ``cbir index`` and ``cbir tune`` use it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import Gallery, IndexVersion, Manifest, VersionWriter
from cbir.core.ensemble import EnsembleSpec, MemberSpec
from cbir.core.metric import MIN_IMAGES, SAMPLE, Projection, augmented, enough_labels, fit_projection, neighbour_metrics
from cbir.core.search import LocalStore, VectorStore
from cbir.core.vector_index import build_index, index_file, resolve_index
from cbir.core.version import __version__
from cbir.core.vote import LinearHead, VoteSettings, fit_head
from cbir.indexer.build.class_names import write_joint_space
from cbir.indexer.build.embedding import Progress

__all__ = ["VersionContent", "fit_members", "write_version"]

Floats = NDArray[np.float32]
Codes = NDArray[np.integer]


@dataclass(frozen=True)
class VersionContent:
    """The content of a version, before anything is fitted.

    Attributes:
        raw: Gives the (N, D) unit vectors of a member before projection, in the gallery's order.
        fingerprints: Fingerprints of the members, by name.
        pseudo_labels: Fit the metric without labels even if there are some.
        index: Vector index in place of the members' own ``index``.
        settings: Settings for the manifest.
        device: Where class names are embedded.
    """

    gallery: Gallery
    ensemble: EnsembleSpec
    raw: Callable[[str], Floats]
    fingerprints: Mapping[str, str]
    vote: VoteSettings
    pseudo_labels: bool = False
    index: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    skipped: Sequence[Mapping[str, str]] = ()
    device: str = "auto"

    @property
    def metric_codes(self) -> Codes | None:
        """(N,) class numbers to fit the metric with; None if it is fitted without labels."""
        return self.gallery.label_codes if self.gallery.labels and not self.pseudo_labels else None


def write_version(
    writer: VersionWriter,
    content: VersionContent,
    report: Callable[[Progress], None],
    vectors: VectorStore | None = None,
) -> IndexVersion:
    """Fit everything to the gallery, write it, and publish it.

    Args:
        vectors: Where the vectors are kept; None: in files of the version.
    """
    from safetensors.numpy import save_file

    vectors = vectors or LocalStore()
    gallery, vote, members = content.gallery, content.vote, content.ensemble.members
    gallery.write(writer.file("images.parquet"))
    specs = [_sized(member, vote) for member in members]
    fitted = fit_members(content.raw, specs, content.metric_codes, report)
    facts: dict[str, dict[str, Any]] = {}
    heads: dict[str, LinearHead] = {}
    plain: list[Floats] = []
    for i, member in enumerate(members):
        report(Progress(f"project {member.name}", i, len(members)))
        projection, fitted_on = fitted[member.name]
        raw = content.raw(member.name)
        projected = projection.apply(raw)
        save_file(projection.arrays(), writer.file(f"members/{member.name}/projection.safetensors"))
        if len(gallery.labels) >= 2 and len(gallery) >= MIN_IMAGES:
            heads[member.name] = fit_head(projected, gallery.label_codes, len(gallery.labels))
        facts[member.name] = {
            "fingerprint": content.fingerprints[member.name],
            "raw_dim": int(raw.shape[1]),
            "dim": projection.dim,
            "metric": member.metric,
            "fitted_on": fitted_on,
            "index": resolve_index(content.index or member.index, len(gallery)),
            **write_joint_space(
                writer, gallery, member, content.fingerprints[member.name], raw, content.device, report
            ),
        }
        if vote.augmentation_neighbours > 0:
            # Neighbours are found with all members together, so all members' vectors are needed at once.
            plain.append(projected)
            # The vectors before averaging are stored too: averaged ones resemble their neighbours, which would hide
            # which images are near duplicates.
            np.save(writer.file(f"members/{member.name}/plain.npy"), projected.astype(np.float16))
        else:
            _write_member(writer, member.name, projected, facts, report, vectors)
    if plain:
        report(Progress("augment", 0, 0))
        dims = [part.shape[1] for part in plain]
        weights = np.array([vote.weights[member.name] for member in members])
        sharp = augmented(
            np.concatenate(plain, axis=1), dims, vote.augmentation_neighbours, vote.augmentation_exponent, weights
        )
        for member, part in zip(members, np.split(sharp, np.cumsum(dims)[:-1], axis=1), strict=True):
            _write_member(writer, member.name, part, facts, report, vectors)
    writer.write_heads(heads)
    writer.write_json("vote.json", vote.to_json())
    kept = vectors.keep(
        writer.path, gallery, {name: str(about["index"]) for name, about in facts.items()},
        lambda done, total: report(Progress(f"send to {vectors.kind}", done, total)),
    )  # fmt: skip
    report(Progress("publish", 0, 0))
    return writer.publish(
        Manifest(
            version="",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            images=len(gallery),
            labels=len(gallery.labels),
            ensemble=content.ensemble,
            members=facts,
            files={},
            settings=content.settings,
            skipped=tuple(content.skipped),
            libraries=_libraries(),
            store=kept,
        )
    )


def fit_members(
    raw: Callable[[str], Floats],
    members: Sequence[MemberSpec],
    codes: Codes | None,
    report: Callable[[Progress], None] = lambda _: None,
) -> dict[str, tuple[Projection, str]]:
    """Fit the projection of every member.

    Without labels, the metrics are learnt jointly from a sample of the gallery.

    Returns:
        By member: the projection, and what it was fitted on.
    """
    fitted: dict[str, tuple[Projection, str]] = {}
    joint = codes is None or not enough_labels(codes)
    samples: dict[str, Floats] = {}
    for i, member in enumerate(members):
        report(Progress(f"fit {member.name}", i, len(members)))
        vectors = raw(member.name)
        together = joint and member.metric == "glrt"
        fitted[member.name] = fit_projection(vectors, member.dim, "pca" if together else member.metric, codes)
        if together and fitted[member.name][1] == "gallery":
            samples[member.name] = fitted[member.name][0].apply(vectors[_sample(len(vectors))])
    if samples:
        report(Progress("fit metrics", 0, 0))
        weights = [member.weight for member in members if member.name in samples]
        metrics = neighbour_metrics(list(samples.values()), weights=weights)
        for name, metric in zip(samples, metrics, strict=True):
            projection = fitted[name][0]
            fitted[name] = Projection(projection.mean, projection.basis, metric), "neighbours"
    return fitted


def _sized(member: MemberSpec, vote: VoteSettings) -> MemberSpec:
    """The member with its tuned dimension, if there is one."""
    return MemberSpec(**{**vars(member), "dim": vote.dims.get(member.name, member.dim)})


def _sample(count: int) -> slice | NDArray[np.int64]:
    if count <= SAMPLE:
        return slice(None)
    return np.sort(np.random.default_rng(0).choice(count, SAMPLE, replace=False))


def _write_member(
    writer: VersionWriter,
    name: str,
    vectors: Floats,
    facts: Mapping[str, Mapping[str, Any]],
    report: Callable[[Progress], None],
    store: VectorStore,
) -> None:
    half = vectors.astype(np.float16)
    np.save(writer.file(f"members/{name}/embeddings.npy"), half)
    index = str(facts[name]["index"])
    # Another store builds its own.
    if store.kind == "local" and (file := index_file(index)):
        report(Progress(f"index {name}", 0, 0))
        build_index(index, half, writer.file(f"members/{name}/{file}"))


def _libraries() -> dict[str, str]:
    versions = {"ensemble-cbir": __version__}
    for name in ("numpy", "torch", "timm", "open_clip_torch", "openvino", "faiss-gpu", "faiss-cpu", "annoy", "pillow"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
