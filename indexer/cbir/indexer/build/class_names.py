"""What an index stores for text queries and for votes by class names: joint embeddings and embedded class names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import EmbeddingCache, VectorFile, VersionWriter
from cbir.core.ensemble import PROMPTS, MemberSpec, class_embeddings, has_text_tower, load_text_embedder
from cbir.core.metric import Vectors
from cbir.core.search import zero_shot_probabilities
from cbir.indexer.build.next_segment import NextSegment
from cbir.indexer.build.runner import Progress

__all__ = ["class_name_digest", "class_names_folder", "write_joint_space"]

Floats = NDArray[np.float32]

_BLOCK_ROWS = 8192


def class_names_folder(fingerprint: str) -> str:
    """Folder of the cache that holds the class names that a member has embedded."""
    return f"classes-{PROMPTS}-{fingerprint}"


def class_name_digest(label: str) -> bytes:
    """The key of a class name in the cache."""
    return hashlib.sha256(label.encode()).digest()


def write_joint_space(
    writer: VersionWriter,
    labels: Sequence[str],
    codes: NDArray[np.int32],
    member: MemberSpec,
    fingerprint: str,
    raw: Vectors,
    device: str,
    report: Callable[[Progress], None],
    segment: NextSegment | None = None,
    written: NDArray[np.int64] | None = None,
    accuracy: float | None = None,
) -> dict[str, Any]:
    """Write what a member with a text tower needs: ``joint.npy``, and ``classes.safetensors`` if there are labels.

    Args:
        labels: The distinct labels, sorted.
        codes: (N,) place of each image's label in these, -1 without one.
        raw: (N, raw_dim) unit vectors in row order.
        segment: Takes over the vectors that the live version has.
        written: (K,) rows whose vectors are written; None: all.
        accuracy: The zero-shot accuracy where it is known.

    Returns:
        Facts for the manifest: ``text`` and, if that is True, ``prompts`` and ``zero_shot_accuracy``.

    Raises:
        EnsembleError: Class names must be embedded and the text tower cannot be loaded.
    """
    if not has_text_tower(member):
        return {"text": False}
    from safetensors.numpy import save_file

    folder = f"members/{member.name}"
    name = f"{folder}/joint.npy"
    if segment is not None:
        name = segment.take_over(writer, name)
    rows = np.arange(len(raw)) if written is None else written
    with VectorFile(writer.file(name), int(raw.shape[1])) as file:
        for start in range(0, len(rows), _BLOCK_ROWS):
            file.append(raw[rows[start : start + _BLOCK_ROWS]].astype(np.float16))
    if not labels:
        return {"text": True, "prompts": None, "zero_shot_accuracy": None}
    classes, scale = _classes(writer.index / "cache", labels, member, fingerprint, device, report)
    save_file(
        {"embeddings": classes, "logit_scale": np.array([scale], np.float32)},
        writer.file(f"{folder}/classes.safetensors"),
    )
    accuracy = _accuracy(raw, codes, classes, scale) if accuracy is None else accuracy
    return {"text": True, "prompts": PROMPTS, "zero_shot_accuracy": round(accuracy, 4)}


def _classes(
    cache: Path,
    labels: Sequence[str],
    member: MemberSpec,
    fingerprint: str,
    device: str,
    report: Callable[[Progress], None],
) -> tuple[Floats, float]:
    """Unit vectors (C, D) of the class names, and the logit scale.

    The text tower is only loaded if there are names that the cache does not hold.
    """
    # The cache holds unit vectors multiplied by the logit scale, so that the scale need not be stored apart.
    known = EmbeddingCache(cache, class_names_folder(fingerprint))
    new = [label for label in labels if class_name_digest(label) not in known]
    if new:
        report(Progress(f"load words of {member.name}", 0, len(new)))
        embedder = load_text_embedder(member, device)
        report(Progress(f"embed class names by {member.name}", 0, len(new)))
        vectors = class_embeddings(embedder, new) * np.float32(embedder.logit_scale)
        known.put([class_name_digest(label) for label in new], vectors)
    scaled = known.get([class_name_digest(label) for label in labels])
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.ascontiguousarray(scaled / norms, np.float32), float(norms.mean())


def _accuracy(raw: Vectors, codes: NDArray[np.int32], classes: Floats, scale: float) -> float:
    """Zero-shot accuracy: the share of the labelled images whose label is the most likely one by its name.

    It is high for names that mean something to the model, and low for names such as ``n01440764``.
    """
    right = 0
    for start in range(0, len(raw), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        right += int((zero_shot_probabilities(raw[part], classes, scale).argmax(axis=1) == codes[part]).sum())
    return right / max(1, int((codes >= 0).sum()))
