"""Write a version: projections, vectors, heads, indexes, vote, manifest.  ``cbir index`` and ``cbir tune`` use it.

Vectors go from the cache to their file a block at a time, so that the memory taken does not grow with the gallery.
Where a large gallery has changed little, the live version's projections are kept: its vectors are then copied, and its
vector indexes extended, in place of being made anew.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import SOURCES_FILE, Gallery, IndexVersion, Manifest, VersionWriter
from cbir.core.ensemble import MemberSpec
from cbir.core.metric import MIN_IMAGES, Projection, Vectors, augmented
from cbir.core.search import LocalStore, VectorStore
from cbir.core.vector_index import IndexChoice, build_index, choose_index, extend_index, index_file
from cbir.core.version import __version__
from cbir.core.vote import VoteSettings, fit_head
from cbir.indexer.build.class_names import write_joint_space
from cbir.indexer.build.fitting import Fit, fit_members, sampled, stratified_sample
from cbir.indexer.build.runner import Progress
from cbir.indexer.build.vector_file import VectorFile
from cbir.indexer.build.version_content import KeptRows, VersionContent, kept_fit, kept_heads

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
    with ThreadPoolExecutor(1, "cbir-check") as beside:
        # The vectors that are taken over are compared with their checksums while the table is written.
        checked = None if kept is None else beside.submit(kept.live.verify, [m.name for m in members])
        gallery.write(writer.file("images.parquet"))
        if checked is not None:
            checked.result()
    specs = [_sized(member, vote) for member in members]
    chosen = stratified_sample(gallery.label_codes if gallery.labels else None, len(gallery), content.fit_sample)
    sample, codes = sampled(content.raw, chosen), content.metric_codes
    if kept is None or fit is None:
        fit = Fit(len(gallery), len(gallery) if isinstance(chosen, slice) else len(chosen))
        fitted = fit_members(sample, specs, None if codes is None else codes[chosen], report)
    else:
        told = kept.live.manifest.members
        fitted = {m.name: (kept.live.projection(m.name), str(told[m.name]["fitted_on"])) for m in members}
    chosen_indexes = choose_index(len(gallery), [fitted[member.name][0].dim for member in members])
    facts: dict[str, dict[str, Any]] = {}
    # As the projections, from whose sample they were learnt.
    heads = {} if kept is None else kept_heads(kept.live, gallery.labels)
    plain: list[Floats] = []
    for i, member in enumerate(members):
        report(Progress(f"project {member.name}", i, len(members)))
        projection, fitted_on = fitted[member.name]
        raw = content.raw(member.name)
        index = (
            chosen_indexes[i] if (named := content.index or member.index) == "auto" else IndexChoice(named, "as asked")
        )
        save_file(projection.arrays(), writer.file(f"members/{member.name}/projection.safetensors"))
        if member.name not in heads and len(gallery.labels) >= 2 and len(gallery) >= MIN_IMAGES:
            vectors = projection.apply(sample(member.name)[:])
            heads[member.name] = fit_head(vectors, gallery.label_codes[chosen], len(gallery.labels))
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
            ),
        }
        if vote.augmentation_neighbours > 0:
            # Neighbours are found with all members together, so all members' vectors are needed at once.
            plain.append(np.concatenate([projection.apply(raw[part]) for part in _blocks(len(gallery))]))
            # The vectors before averaging are stored too: averaged ones resemble their neighbours, which would hide
            # which images are near duplicates.
            np.save(writer.file(f"members/{member.name}/plain.npy"), plain[-1].astype(np.float16))
        else:
            _write_vectors(writer, member.name, _projected(raw, projection, kept, member.name), facts)
            if store.kind == "local":  # another store builds its own
                _write_index(writer, member.name, facts, kept, report)
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
                _write_index(writer, member.name, facts, None, report)
    writer.write_heads(heads)
    writer.write_json("vote.json", vote.to_json())
    if content.sources:
        writer.write_json(SOURCES_FILE, list(content.sources))
    kinds = {name: str(about["index"]) for name, about in facts.items()}
    # A store reads the table that was just written; that of the version's files has nothing to do.
    away: Mapping[str, Any] = {} if store.kind == "local" else store.keep(
        writer.path, Gallery.read(writer.file("images.parquet")), kinds,
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
        )
    )


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))


def _projected(
    raw: Vectors, projection: Projection, kept: KeptRows | None, member: str
) -> Iterator[NDArray[np.float16]]:
    """Blocks of a member's vectors; those that the live version has are copied."""
    old = None if kept is None else kept.live.embeddings(member)
    for part in _blocks(len(raw)):
        if kept is None or old is None:
            yield projection.apply(raw[part]).astype(np.float16)
            continue
        rows = kept.rows[part]
        there = rows >= 0
        block = old[np.maximum(rows, 0)]
        if not there.all():
            new = part.start + np.flatnonzero(~there)
            block[~there] = projection.apply(raw[new]).astype(np.float16)
        yield block


def _write_vectors(
    writer: VersionWriter,
    name: str,
    blocks: Iterator[NDArray[np.float16]],
    facts: Mapping[str, Mapping[str, Any]],
) -> None:
    with VectorFile(writer.file(f"members/{name}/embeddings.npy"), int(facts[name]["dim"])) as file:
        for block in blocks:
            file.append(block)


def _write_index(
    writer: VersionWriter,
    name: str,
    facts: Mapping[str, dict[str, Any]],
    kept: KeptRows | None,
    report: Callable[[Progress], None],
) -> None:
    kind = str(facts[name]["index"])
    file = index_file(kind)
    if file is None:
        return
    vectors = np.load(writer.file(f"members/{name}/embeddings.npy"), mmap_mode="r")
    path = writer.file(f"members/{name}/{file}")
    if kept is not None and kept.live.manifest.members[name]["index"] == kind:
        report(Progress(f"extend index {name}", 0, 0))
        with kept.live.index_place(name, file) as old:
            if extend_index(kind, old, kept.rows, vectors, path):
                return
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
