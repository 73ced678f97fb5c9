"""Train a member of an ensemble from images: teachers' embeddings, the training loop, and the files it leaves."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.crop import Box
from cbir.core.decode import decode_image
from cbir.core.embedder import prepare
from cbir.core.ensemble import MEMBER_NAME, EnsembleSpec
from cbir.core.errors import EnsembleError, ImageError, SourceError
from cbir.core.runtime import choose_runtime
from cbir.indexer.distill import DistillRecipe, TrainingProgress, distill, teacher_targets
from cbir.indexer.embedding import EmbeddingRun, Progress, RunSettings
from cbir.indexer.pipeline import ImageSources
from cbir.indexer.sources import SourceImage

__all__ = ["StudentSpec", "TrainedMember", "train_member"]

_MEAN = _STD = (0.5, 0.5, 0.5)
_CHUNK = 1024


@dataclass(frozen=True)
class StudentSpec:
    """The network to train.

    Attributes:
        name: The member's name in the ensemble file.
        model: timm's name.
        options: For timm's factory.
        init: A ``.safetensors`` file to start from, or None for random weights.
        image_size: Side in pixels at which training images are kept; 0 means the recipe's input size.
    """

    name: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    init: Path | None = None
    image_size: int = 0


@dataclass(frozen=True)
class TrainedMember:
    """What a training run left."""

    weights: Path
    ensemble: Path
    images: int
    classes: int
    parameters: int

    def to_json(self) -> dict[str, Any]:
        """The document `cbir train --json` prints."""
        return {**vars(self), "weights": str(self.weights), "ensemble": str(self.ensemble)}


def train_member(
    sources: ImageSources,
    teachers: EnsembleSpec,
    student: StudentSpec,
    recipe: DistillRecipe,
    out: Path,
    settings: RunSettings | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_training: Callable[[TrainingProgress], None] | None = None,
) -> TrainedMember:
    """Distil the teachers into a student and write ``<name>.safetensors`` and ``<name>.toml`` into ``out``.

    A run that was stopped goes on: teachers' embeddings are cached, training has checkpoints.

    Raises:
        SourceError: No image can be used.
        EnsembleError: A teacher or the student cannot be built.
    """
    if not re.fullmatch(MEMBER_NAME, student.name):
        raise EnsembleError(
            f"a member may not be called {student.name!r}: use letters, digits, '-', '_' and '.'", reason="BAD_NAME"
        )
    if min(recipe.minutes, recipe.epochs, recipe.batch, recipe.size) <= 0:
        raise EnsembleError("minutes, epochs, batch and size must be positive", reason="BAD_RECIPE")
    out.mkdir(parents=True, exist_ok=True)
    report = on_progress or (lambda _: None)
    settings = settings or RunSettings()
    place = choose_runtime(settings.device, "torch")
    network = _network(student)
    ensemble_text = _ensemble_file(student, recipe, f"{student.name}.safetensors")
    found = sources.scan()
    run = EmbeddingRun(teachers, out / "cache", settings, on_progress)
    facts, skipped = run.run(found, sources)
    good = [image for image in found if image.id in facts]
    if not good:
        first = f"; the first was {skipped[0].uri}: {skipped[0].reason}" if skipped else ""
        raise SourceError(f"no training image could be read{first}", reason="SOURCE_EMPTY")
    digests = [facts[image.id].sha256 for image in good]
    targets = teacher_targets([run.raw(m.name, digests) for m in teachers.members])
    labels, classes = _labels(good)
    content = hashlib.sha256(b"".join(digests) + (labels.tobytes() if labels is not None else b"")).hexdigest()
    side = student.image_size or recipe.size
    images = _pixels(good, sources, side, out / f"images-{side}-{content[:16]}.npy", report)
    identity = json.dumps([asdict(student), asdict(recipe), content, sorted(run.fingerprints.values())], default=str)
    parameters = sum(p.numel() for p in network.parameters())
    state = distill(
        network, images, targets, labels, recipe, out / f"{student.name}.checkpoint",
        mean=_MEAN, std=_STD, device="cuda" if place == "torch-cuda" else "cpu", on_progress=on_training,
        identity=hashlib.sha256(identity.encode()).hexdigest(),
    )  # fmt: skip
    weights = out / f"{student.name}.safetensors"
    _save(state, weights)
    facts_file = {"student": asdict(student), "recipe": asdict(recipe), "images": len(good), "teachers": teachers.name}
    (out / f"{student.name}.json").write_text(json.dumps(facts_file, indent=1, default=str))
    ensemble = out / f"{student.name}.toml"
    ensemble.write_text(ensemble_text)
    return TrainedMember(weights, ensemble, len(good), classes, parameters)


def _network(student: StudentSpec) -> Any:
    import timm

    from cbir.core.embedders.weights import load_state
    from cbir.core.ensemble import MemberSpec

    try:
        network = timm.create_model(student.model, num_classes=0, **student.options)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise EnsembleError(
            f"timm cannot build {student.model!r} with {dict(student.options)} ({error}): check model and options",
            reason="MODEL_UNKNOWN",
        ) from error
    if student.init:
        load_state(network, student.init, MemberSpec(student.name, "timm", student.model, str(student.init)))
    return network


def _labels(images: Sequence[SourceImage]) -> tuple[NDArray[np.int64] | None, int]:
    """Class numbers, or None unless every image has a label and there are at least two classes."""
    names = sorted({str(image.label) for image in images})
    if len(names) < 2 or any(image.label is None for image in images):
        return None, 0
    place = {name: code for code, name in enumerate(names)}
    return np.array([place[str(image.label)] for image in images], np.int64), len(names)


def _pixels(
    images: Sequence[SourceImage], sources: ImageSources, side: int, path: Path, report: Callable[[Progress], None]
) -> NDArray[np.uint8]:
    """All images as one (N, side, side, 3) array in a memory map, which costs no memory that is not in use."""
    shape = (len(images), side, side, 3)
    if path.exists():
        kept: NDArray[np.uint8] = np.load(path, mmap_mode="r")
        if kept.shape == shape:
            return kept

    def one(image: SourceImage) -> NDArray[np.uint8]:
        try:
            pixels = decode_image(sources.read(image)).pixels
        except ImageError:  # readable a moment ago: the file changed under us
            return np.zeros(shape[1:], np.uint8)
        return prepare(pixels, Box(0, 0, pixels.shape[1], pixels.shape[0]), side, "bicubic")

    partial = path.with_suffix(".partial")
    array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(images), _CHUNK):
            part = images[start : start + _CHUNK]
            array[start : start + len(part)] = np.stack(list(pool.map(one, part)))
            report(Progress("read", start + len(part), len(images)))
    array.flush()
    partial.replace(path)
    return np.asarray(np.load(path, mmap_mode="r"))


def _save(state: Mapping[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    half = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}
    partial = path.with_suffix(".partial")
    save_file(half, partial)
    partial.replace(path)


def _ensemble_file(student: StudentSpec, recipe: DistillRecipe, weights: str) -> str:
    options = ", ".join(f"{key} = {json.dumps(value)}" for key, value in student.options.items())
    text = f"""[ensemble]
name = "{student.name}"
crop = "content"

[[members]]
name = "{student.name}"
backend = "timm"
model = "{student.model}"
weights = "{weights}"
options = {{ {options} }}
input = {{ size = {recipe.size}, mean = {list(_MEAN)}, std = {list(_STD)}, interpolation = "bicubic" }}
dim = 256
"""
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise EnsembleError(
            f"the options {dict(student.options)} cannot be written to an ensemble file ({error}): use numbers, texts, "
            "true, false and lists of them",
            reason="BAD_OPTIONS",
        ) from error
    return text
