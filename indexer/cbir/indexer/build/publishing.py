"""Write a version: projections, vectors, heads, indexes, vote, manifest.  ``cbir index`` and ``cbir tune`` use it.

Vectors go from the cache to their file a block at a time, so that the memory taken does not grow with the gallery.
Where a large gallery has changed little, the live version's projections are kept: its table, vectors and vector indexes
are then taken over as they are, and what is new is written beside them (:mod:`cbir.indexer.build.next_segment`).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import SOURCES_FILE, TABLE_FILE, Gallery, IndexVersion, Manifest, VectorFile, VersionWriter
from cbir.core.ensemble import MemberSpec
from cbir.core.metric import MIN_IMAGES, augmented
from cbir.core.search import LocalStore, VectorStore
from cbir.core.vector_index import IndexChoice, build_index, choose_index, index_file
from cbir.core.version import __version__
from cbir.core.vote import VoteSettings, fit_head
from cbir.indexer.build.class_names import write_joint_space
from cbir.indexer.build.fitting import Fit, fit_members, sampled, stratified_sample
from cbir.indexer.build.next_segment import NextSegment
from cbir.indexer.build.runner import Progress
from cbir.indexer.build.version_content import KeptRows, VersionContent, has_labels, kept_fit

__all__ = ["write_version"]

Floats = NDArray[np.float32]
Codes = NDArray[np.integer]

_BLOCK = 8192


def write_version(
    writer: VersionWriter,
    content: VersionContent,
    report: Callable[[Progress], None],
    store: VectorStore | None = None,
) -> IndexVersion:
    """Fit everything to the gallery, write it, and publish it.

    Args:
        store: Where the vectors are kept; None: in files of the version.
    """
    from safetensors.numpy import save_file

    store = store or LocalStore()
    gallery, vote, members = content.gallery, content.vote, content.ensemble.members
    kept, fit = kept_fit(content)
    segment = None if kept is None or store.kind != "local" else _next_segment(content, kept, writer)
    if segment is None:
        gallery.write(writer.file(TABLE_FILE))
        written = np.arange(len(gallery))
        segments: tuple[int, ...] = ()
    else:
        gallery.write(writer.file(segment.take_over(writer, TABLE_FILE)), segment.stays)
        assert kept is not None
        written, segments = segment.place(kept.rows), segment.write_places(writer, kept.rows)
    told = {} if kept is None else kept.live.manifest.members
    specs = [_sized(member, vote) for member in members]
    known = gallery.label_codes if gallery.labels else None
    # Drawn when it is first needed: an update that keeps its fit needs none, and a million rows take a while.
    sample = cache(partial(stratified_sample, known, len(gallery), content.fit_sample))
    if kept is None or fit is None:
        chosen, codes = sample(), content.metric_codes
        fit = Fit(len(gallery), len(gallery) if isinstance(chosen, slice) else len(chosen))
        fitted = fit_members(sampled(content.raw, chosen), specs, None if codes is None else codes[chosen], report)
    else:
        fitted = {m.name: (kept.live.projection(m.name), str(told[m.name]["fitted_on"])) for m in members}
    indexes = _indexes(content, [fitted[member.name][0].dim for member in members])
    facts: dict[str, dict[str, Any]] = {}
    # As the projections, from whose sample they were learnt.
    same_labels = kept is not None and has_labels(kept.live, gallery.labels)
    heads = kept.live.heads() if kept is not None and same_labels else {}
    plain: list[Floats] = []
    for i, member in enumerate(members):
        report(Progress(f"project {member.name}", i, len(members)))
        projection, fitted_on = fitted[member.name]
        raw = content.raw(member.name)
        index = indexes[i]
        save_file(projection.arrays(), writer.file(f"members/{member.name}/projection.safetensors"))
        if member.name not in heads and len(gallery.labels) >= 2 and len(gallery) >= MIN_IMAGES:
            vectors = projection.apply(sampled(content.raw, sample())(member.name)[:])
            heads[member.name] = fit_head(vectors, gallery.label_codes[sample()], len(gallery.labels))
        facts[member.name] = {
            "fingerprint": content.fingerprints[member.name],
            "raw_dim": int(raw.shape[1]),
            "dim": projection.dim,
            "metric": member.metric,
            "fitted_on": fitted_on,
            "fit": vars(fit),
            "index": index.name,
            "index_why": index.why,
            **write_joint_space(
                writer,
                gallery.labels,
                gallery.label_codes,
                member,
                content.fingerprints[member.name],
                raw,
                content.device,
                report,
                segment,
                written,
                told[member.name].get("zero_shot_accuracy") if same_labels else None,
            ),
        }
        if vote.augmentation_neighbours > 0:
            # Neighbours are found with all members together, so all members' vectors are needed at once.
            plain.append(np.concatenate([projection.apply(raw[part]) for part in _blocks(len(gallery))]))
            # The vectors before averaging are stored too: averaged ones resemble their neighbours, which would hide
            # which images are near duplicates.
            np.save(writer.file(f"members/{member.name}/plain.npy"), plain[-1].astype(np.float16))
        else:
            blocks = (projection.apply(raw[part]).astype(np.float16) for part in _parts(written))
            _write_vectors(writer, member.name, blocks, facts, segment)
            if segment is not None:
                segment.take_over_index(writer, member.name, index.name)
            elif store.kind == "local":  # another store builds its own
                _write_index(writer, member.name, facts, report)
    if plain:
        report(Progress("augment", 0, 0))
        dims = [part.shape[1] for part in plain]
        weights = np.array([vote.weights[member.name] for member in members])
        sharp = augmented(
            np.concatenate(plain, axis=1), dims, vote.augmentation_neighbours, vote.augmentation_exponent, weights
        )
        for member, part in zip(members, np.split(sharp, np.cumsum(dims)[:-1], axis=1), strict=True):
            _write_vectors(writer, member.name, iter([part.astype(np.float16)]), facts)
            if store.kind == "local":
                _write_index(writer, member.name, facts, report)
    writer.write_heads(heads)
    writer.write_json("vote.json", vote.to_json())
    if content.sources:
        writer.write_json(SOURCES_FILE, list(content.sources))
    kinds = {name: str(about["index"]) for name, about in facts.items()}
    # A store reads the table that was just written; that of the version's files has nothing to do.
    away: Mapping[str, Any] = {} if store.kind == "local" else store.keep(
        writer.path, Gallery.read(writer.file(TABLE_FILE)), kinds,
        lambda done, total: report(Progress(f"send to {store.kind}", done, total)),
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
            store=away,
            segments=segments,
        )
    )


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))


def _parts(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (rows[part] for part in _blocks(len(rows)))


def _indexes(content: VersionContent, dims: Sequence[int]) -> list[IndexChoice]:
    """The members' kinds of vector index."""
    chosen = choose_index(len(content.gallery), dims)
    named = [content.index or member.index for member in content.ensemble.members]
    return [auto if name == "auto" else IndexChoice(name, "as asked") for name, auto in zip(named, chosen, strict=True)]


def _next_segment(content: VersionContent, kept: KeptRows, writer: VersionWriter) -> NextSegment | None:
    names, told = [member.name for member in content.ensemble.members], kept.live.manifest.members
    indexes = _indexes(content, [int(told[name]["dim"]) for name in names])
    kinds = {name: index.name for name, index in zip(names, indexes, strict=True)}
    return NextSegment.after(kept.live, content.ensemble, kinds, writer)


def _write_vectors(
    writer: VersionWriter,
    name: str,
    blocks: Iterator[NDArray[np.float16]],
    facts: Mapping[str, Mapping[str, Any]],
    segment: NextSegment | None = None,
) -> None:
    path = f"members/{name}/embeddings.npy"
    if segment is not None:
        path = segment.take_over(writer, path)
    with VectorFile(writer.file(path), int(facts[name]["dim"])) as file:
        for block in blocks:
            file.append(block)


def _write_index(
    writer: VersionWriter,
    name: str,
    facts: Mapping[str, dict[str, Any]],
    report: Callable[[Progress], None],
) -> None:
    kind = str(facts[name]["index"])
    file = index_file(kind)
    if file is None:
        return
    vectors = np.load(writer.file(f"members/{name}/embeddings.npy"), mmap_mode="r")
    path = writer.file(f"members/{name}/{file}")
    report(Progress(f"index {name}", 0, 0))
    build_index(kind, vectors, path)


def _sized(member: MemberSpec, vote: VoteSettings) -> MemberSpec:
    """The member with its tuned dimension, if there is one."""
    return MemberSpec(**{**vars(member), "dim": vote.dims.get(member.name, member.dim)})


def _libraries() -> dict[str, str]:
    versions = {"ensemble-cbir": __version__}
    for name in ("numpy", "torch", "timm", "open_clip_torch", "openvino", "faiss-gpu", "faiss-cpu", "annoy", "pillow"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
