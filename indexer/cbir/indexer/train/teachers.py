"""The targets of distillation: each teacher's feature maps of the training images, or its pooled embeddings.

Both are centred and projected to the principal components of the teacher's pooled embeddings, once, and kept in float16
in a memory-mapped file.  In training each component is divided by a power of its standard deviation (partial
whitening), because otherwise a few components of large variance would dominate the cosine.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cbir.core.ensemble import (
    Embedder,
    EnsembleSpec,
    InputFormat,
    MemberSpec,
    build_network,
    classifier_names,
    member_fingerprint,
    run_network,
)
from cbir.core.errors import EnsembleError
from cbir.core.images import Crop
from cbir.indexer.build import EmbeddingRun, ImageSources, Progress, RunSettings, gathered
from cbir.indexer.train.images import TrainingImages, prepared
from cbir.indexer.train.network.student import dense_embeddings, probe

__all__ = ["Teacher", "learn_teachers", "principal_components", "whitening"]

#: Number of images, drawn at random, that the principal components are computed from.
_SAMPLE = 4096
_COMMIT_SECONDS = 5.0


@dataclass(frozen=True)
class Teacher:
    """The targets that one teacher gives.

    Attributes:
        features: (N, S, S, d) float16 feature map of each image, or (N, d) pooled embeddings where there is no map.
        deviations: (d,) float32 standard deviation of each component.
        classifier: Weight (classes, d) and bias (classes,), float32, of the teacher's classifier applied to
            ``features``; None without one.
    """

    name: str
    features: NDArray[np.float16]
    deviations: NDArray[np.float32]
    classifier: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    @property
    def width(self) -> int:
        """Number of components d."""
        return int(self.features.shape[-1])

    @property
    def dense(self) -> bool:
        """Whether there are feature maps."""
        return self.features.ndim == 4


def principal_components(
    pooled: NDArray[np.float32], most: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Principal component analysis of the rows of (N, D).

    Components with hardly any variance are left out, so that whitening does not divide by almost 0.

    Returns:
        Mean (D,), orthonormal basis (D, d) and standard deviations (d,) of at most ``most`` components, by descending
        variance.
    """
    mean = pooled.mean(axis=0, dtype=np.float64)
    centred = pooled - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / len(pooled))
    values, vectors = values[::-1], vectors[:, ::-1]
    count = int(np.count_nonzero(values[: min(most, max(1, len(pooled) - 1))] > 1e-6 * max(values[0], 1e-30)))
    count = max(1, count)
    deviations = np.sqrt(values[:count].clip(min=1e-12))
    return mean.astype(np.float32), vectors[:, :count].astype(np.float32), deviations.astype(np.float32)


def whitening(deviations: NDArray[np.float32], exponent: float) -> NDArray[np.float32]:
    """Factors (d,) of the components: 1 / deviation^exponent.  An exponent of 0 changes nothing, 1 whitens fully."""
    return np.asarray(deviations ** np.float32(-exponent), dtype=np.float32)


def learn_teachers(
    teachers: EnsembleSpec,
    images: TrainingImages,
    sources: ImageSources,
    folder: Path,
    components: int,
    settings: RunSettings,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Teacher]:
    """Embed the images with every teacher, or take the features that an earlier run left in ``folder``.

    Members of the timm backend whose network has a square feature map of at least two locations a side give maps of the
    whole images, which are later cut by the same random view as the student's images.  Other members give pooled
    embeddings.

    Args:
        folder: Where the maps are kept, 2 · S² · d bytes for each image.
        components: Most components d for a teacher.

    Raises:
        EnsembleError: A teacher cannot be built.
    """
    report = on_progress or (lambda _: None)
    found: dict[str, Teacher] = {}
    pooled: list[MemberSpec] = []
    for member in teachers.members:
        network, form, side = _network(member)
        if network is None or form is None or side < 2:
            pooled.append(member)
            continue
        mapped = _Maps(member, network, form, side, images, sources, folder, settings, report)
        found[member.name] = mapped.learn(components)
    if pooled:
        embedded = EmbeddingRun(replace(teachers, members=tuple(pooled)), folder / "cache", settings, on_progress)
        gathered(embedded.run(images.images, sources, len(images.images)))
        for member in pooled:
            raw = embedded.embeddings.raw(member.name, images.digests)
            mean, basis, deviations = principal_components(raw, components)
            found[member.name] = Teacher(member.name, ((raw - mean) @ basis).astype(np.float16), deviations)
    return [found[member.name] for member in teachers.members]


def _network(member: MemberSpec) -> tuple[nn.Module | None, InputFormat | None, int]:
    """A member's network, its input, and the number of locations a side of its feature map (0: no square map).

    (None, None, 0) where the member is not of the timm backend or its network cannot be probed.
    """
    if member.backend != "timm":
        return None, None, 0
    network, form = build_network(member)
    try:
        return network, form, probe(network, (form.size,))[1]
    except EnsembleError as error:
        logging.getLogger(__name__).info("%s is distilled by its pooled embedding only (%s)", member.name, error)
        return None, None, 0


class _Locations(nn.Module):
    """Maps (B, 3, side, side) images to the embeddings of all locations, concatenated, followed by a 1.

    An embedder scales its output to unit length; dividing by what became of the 1 undoes that.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        cells = dense_embeddings(self.network, self.network.forward_features(images)).flatten(1)  # type: ignore[operator]
        return torch.cat([cells, torch.ones_like(cells[:, :1])], dim=1)


class _Maps:
    """Computes the feature maps of one teacher: first the principal components, then the maps of all images.

    The maps go into a memory-mapped file; a run that was stopped goes on where the file ends.
    """

    def __init__(
        self,
        member: MemberSpec,
        network: nn.Module,
        form: InputFormat,
        side: int,
        images: TrainingImages,
        sources: ImageSources,
        folder: Path,
        settings: RunSettings,
        report: Callable[[Progress], None],
    ) -> None:
        self.member, self.network, self.form, self.side = member, network, form, side
        self.images, self.sources, self.folder = images, sources, folder
        self.settings, self.report = settings, report
        self.embedder: Embedder | None = None

    def learn(self, components: int) -> Teacher:
        identity = [member_fingerprint(self.member, Crop.NONE), self.images.content, components]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        stem = f"teacher-{self.member.name}-{key}"
        axes, file, state = (self.folder / f"{stem}.{suffix}" for suffix in ("npz", "npy", "json"))
        if not axes.exists():
            mean, basis, deviations = principal_components(self._sample(), components)
            np.savez(axes, mean=mean, basis=basis, deviations=deviations)
        with np.load(axes) as known:
            mean, basis, deviations = known["mean"], known["basis"], known["deviations"]
        done = json.loads(state.read_text())["done"] if state.exists() and file.exists() else 0
        if done < len(self.images):
            self._fill(file, state, done, mean, basis)
        maps = np.load(file, mmap_mode="r")
        return Teacher(self.member.name, maps, deviations, _classifier(self.member, self.network, mean, basis))

    def _sample(self) -> NDArray[np.float32]:
        rows = np.random.default_rng(0).permutation(len(self.images))[:_SAMPLE]
        parts = [maps.mean(axis=(1, 2)) for _, maps in self._embed(np.sort(rows), "sample")]
        return np.concatenate(parts)

    def _fill(self, file: Path, state: Path, done: int, mean: NDArray[np.float32], basis: NDArray[np.float32]) -> None:
        array: Any = np.load(file, mmap_mode="r+") if done else None
        committed = time.monotonic()
        for start, maps in self._embed(np.arange(done, len(self.images)), "embed"):
            if array is None:
                shape = (len(self.images), *maps.shape[1:3], basis.shape[1])
                array = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape)
            projected = np.clip((maps - mean) @ basis, -6e4, 6e4)
            array[done + start : done + start + len(maps)] = projected
            if time.monotonic() - committed > _COMMIT_SECONDS:
                array.flush()
                state.write_text(json.dumps({"done": done + start + len(maps)}))
                committed = time.monotonic()
        if array is not None:
            array.flush()
        state.write_text(json.dumps({"done": len(self.images)}))

    def _embed(self, rows: NDArray[np.int64], stage: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields (place in rows, (B, S, S, D) float32 maps) over the images at some rows."""
        if self.embedder is None:
            self.report(Progress(f"load {self.member.name}", 0, 1))
            # Converted networks are cached by the member's fingerprint: another model name keeps this one apart from
            # the member's own network.
            member = replace(self.member, model=f"{self.member.model}/locations")
            self.embedder = run_network(
                _Locations(self.network), self.form, self.settings.device, self.settings.runtime, member
            )
        wanted = [self.images.images[row] for row in rows]
        size, started = self.form.size, time.monotonic()
        batch: list[NDArray[np.uint8]] = []
        for place, result in prepared(wanted, self.sources, size, Crop.NONE, self.form.interpolation):
            # The file was readable when the training images were read; if it is not any more, a black image stands in.
            batch.append(result[0] if isinstance(result, tuple) else np.zeros((size, size, 3), np.uint8))
            if len(batch) == self.settings.batch or place + 1 == len(wanted):
                yield place + 1 - len(batch), self._maps(np.stack(batch))
                batch.clear()
                rate = (place + 1) / max(1e-9, time.monotonic() - started)
                left = (len(wanted) - place - 1) / rate
                self.report(Progress(f"{stage} {self.member.name}", place + 1, len(wanted), rate, left))

    def _maps(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert self.embedder is not None
        flat = self.embedder.embed(batch)
        flat = flat[:, :-1] / flat[:, -1:]
        return flat.reshape(len(batch), self.side, self.side, -1)


def _classifier(
    member: MemberSpec, network: nn.Module, mean: NDArray[np.float32], basis: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """The linear classifier W, b of a member's weights file, for projected features z: W·(basis·z + mean) + b."""
    from safetensors import safe_open

    names: Sequence[str] = classifier_names(network)
    file = member.weights_file
    if file is None or len(names) != 1 or member.options.get("num_classes"):
        return None
    with safe_open(str(file), framework="pt") as weights:
        keys = set(weights.keys())
        if not {f"{names[0]}.weight", f"{names[0]}.bias"} <= keys:
            return None
        weight = weights.get_tensor(f"{names[0]}.weight").float().flatten(1).numpy()
        bias = weights.get_tensor(f"{names[0]}.bias").float().numpy()
    if weight.shape[1] != len(mean):
        return None
    return (weight @ basis).astype(np.float32), (weight @ mean + bias).astype(np.float32)
