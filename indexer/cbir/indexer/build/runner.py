"""The protocol of what embeds images, on this machine or on others, and how it is told to use them.

A runner takes a stream of images and gives a stream of blocks.  A block is given once its embeddings are in the cache
of the index (:class:`cbir.indexer.build.RawEmbeddings`), so whoever is killed loses at most what was no block yet.
:class:`cbir.indexer.build.EmbeddingRun` is the local implementation: threads of this process decode, and its models
embed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from cbir.core.images import DecodeLimits

# Their modules bring NumPy and more, and a help that names the runners has no use for them.
if TYPE_CHECKING:
    from cbir.core.ensemble import EnsembleSpec
    from cbir.indexer.build.image_facts import ImageFacts, SkippedImage
    from cbir.indexer.build.raw_embeddings import RawEmbeddings
    from cbir.indexer.sources import SourceImage

__all__ = [
    "RUNNERS",
    "EmbeddedBlock",
    "ImageReader",
    "Progress",
    "RaySettings",
    "RunSettings",
    "Runner",
    "gathered",
    "open_runner",
]

#: Name -> the class that implements :class:`Runner`, loaded when it is asked for.  A further one is a class with the
#: same arguments and a line here.
RUNNERS = {
    "local": "cbir.indexer.build.embedding:EmbeddingRun",
    "ray": "cbir.indexer.build.ray_runner:RayRunner",
}


@dataclass(frozen=True)
class RaySettings:
    """How a run uses a Ray cluster.

    Attributes:
        address: Of the cluster, such as ``10.0.0.1:6379`` or ``auto``; None starts one on this machine.
        workers: How many; 0 for as many as fit, more while there is work.
        cpus: CPUs of a worker; it decodes with as many processes.
        gpus: GPUs of a worker; parts of one let workers share it.
        blocks: fsspec address where workers leave what they embedded; None where all machines see the index's folder.
    """

    address: str | None = None
    workers: int = 0
    cpus: float = 1.0
    gpus: float = 0.0
    blocks: str | None = None


@dataclass(frozen=True)
class RunSettings:
    """How an embedding run uses the machine.

    Attributes:
        batch: Images in a forward pass.
        workers: Decoding threads; 0 for one per core.
        commit_seconds: Seconds between commits: the most work that a killed process loses.
        precision: Precision of the models (:func:`cbir.core.ensemble.load_embedder`).  Fingerprints do not include one
            that is asked for, so such a run needs a cache of its own.
        runner: Where embedding runs: ``local`` or ``ray``.
    """

    device: str = "auto"
    runtime: str = "auto"
    batch: int = 32
    workers: int = 0
    commit_seconds: float = 2.0
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    precision: str = "auto"
    runner: str = "local"
    ray: RaySettings = field(default_factory=RaySettings)

    def for_a_worker(self) -> RunSettings:
        """The settings of a worker of a Ray cluster."""
        device = self.device if self.device != "auto" else "cuda" if self.ray.gpus else "cpu"
        return replace(self, runner="local", device=device, workers=max(1, round(self.ray.cpus)))


@dataclass(frozen=True)
class Progress:
    """A progress report: images done, images in total, images per second, and seconds left (None if unknown)."""

    stage: str
    done: int
    total: int
    rate: float = 0.0
    seconds_left: float | None = None


class ImageReader(Protocol):
    """Reads the bytes of a source's images; thread-safe, and picklable for runners on other machines."""

    def read(self, image: SourceImage) -> bytes:
        """The file's bytes.

        Raises:
            ImageError: The file cannot be read.
        """
        ...


@dataclass(frozen=True)
class EmbeddedBlock:
    """Images that a runner is done with.

    Attributes:
        images: Those that are in the cache now, each with its facts; the order is that of the stream within a block.
        skipped: Those that were left out.
        embedded: Digests of the contents that were embedded for this block, by at least one member.
        files: Files of the cache that were written for it, relative to its folder.
    """

    images: tuple[tuple[SourceImage, ImageFacts], ...]
    skipped: tuple[SkippedImage, ...]
    embedded: frozenset[bytes]
    files: tuple[str, ...] = ()


class Runner(Protocol):
    """Embeds images with every member of an ensemble.

    An image is identified by the SHA-256 digest of its bytes; what the cache knows of it is not computed again.
    """

    @property
    def embeddings(self) -> RawEmbeddings:
        """The cache, which holds every image of the blocks that were given."""
        ...

    def run(self, images: Iterable[SourceImage], reader: ImageReader, total: int = 0) -> Iterator[EmbeddedBlock]:
        """Embed images, as many at a time as the runner can use.

        Args:
            total: How many there are, for progress reports; 0 if that is not known.

        Raises:
            KeyboardInterrupt: The user interrupted; finished work was kept.
            EnsembleError: A model cannot be loaded.
        """
        ...


def open_runner(
    ensemble: EnsembleSpec,
    cache: Path,
    settings: RunSettings,
    on_progress: Callable[[Progress], None] | None = None,
) -> Runner:
    """The runner that the settings name, over the cache of an index.

    Raises:
        ConfigurationError: ``EXTRA_MISSING`` or ``BLOCKS_UNREACHABLE``.
    """
    module, _, name = RUNNERS[settings.runner].partition(":")
    return cast(Runner, getattr(importlib.import_module(module), name)(ensemble, cache, settings, on_progress))


def gathered(blocks: Iterable[EmbeddedBlock]) -> tuple[dict[str, ImageFacts], list[SkippedImage], set[bytes]]:
    """All blocks of a run that is small enough to be held at once.

    Returns:
        Facts by image id, what was left out, and the digests of what was embedded.
    """
    facts: dict[str, ImageFacts] = {}
    skipped: list[SkippedImage] = []
    embedded: set[bytes] = set()
    for block in blocks:
        facts.update((image.id, known) for image, known in block.images)
        skipped += block.skipped
        embedded |= block.embedded
    return facts, skipped, embedded
