"""Embedders: the protocol of a member's model on one device, and how one is loaded.

B images; S is the side of the square input in pixels, D the length of an embedding.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cbir.core.ensemble.backends.registry import BACKENDS
from cbir.core.ensemble.runtime.choice import Precision, choose_precisions, choose_runtime
from cbir.core.ensemble.runtime.conversion import cached_ir
from cbir.core.ensemble.runtime.openvino import OpenVinoEmbedder
from cbir.core.ensemble.runtime.quantisation import Pictures, in_eight_bits
from cbir.core.ensemble.spec import MemberSpec
from cbir.core.errors import CbirError, EnsembleError

__all__ = ["AsyncEmbedder", "Embedder", "Pending", "embed_all", "explained", "load_embedder"]

#: Members that run at the same time on a CPU.  A second one uses the cores that the first leaves idle.  A third would
#: take them from the threads that decode, refuse and answer: an overloaded server would answer a little more, but would
#: take 100 ms to refuse a request.
_CONCURRENT_ON_CPU = 2


class Embedder(Protocol):
    """One member's model on one device.  One caller at a time.

    Attributes:
        dim: Length of an embedding, before projection.
        size: Side of the square input in pixels.
        interpolation: How images are resampled to that square.
        runtime: ``openvino``, ``torch-cpu`` or ``torch-cuda``.
        precision: ``f32``, ``bf16``, ``f16`` or ``int8``: the numbers that the forward pass computes with.
        threads: Of one forward pass; 0 on a GPU.
    """

    dim: int
    size: int
    interpolation: str
    runtime: str
    precision: str
    threads: int

    def embed(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed (B, size, size, 3) uint8 RGB images as (B, dim) float32 unit vectors."""
        ...


class Pending(Protocol):
    """A batch whose forward pass was started."""

    def result(self) -> NDArray[np.float32]:
        """Wait for its (B, dim) float32 unit vectors."""
        ...


@runtime_checkable
class AsyncEmbedder(Protocol):
    """An embedder that can also start a batch without waiting for it."""

    def begin(self, batch: NDArray[np.uint8]) -> Pending:
        """Start the forward pass of (B, size, size, 3) uint8 RGB images.

        Take the result before the images change and before the next call of the embedder.
        """
        ...


@dataclass(frozen=True)
class _Done:
    embeddings: NDArray[np.float32]

    def result(self) -> NDArray[np.float32]:
        return self.embeddings


@dataclass(frozen=True)
class _Mirrored:
    both: Pending

    def result(self) -> NDArray[np.float32]:
        embeddings = self.both.result()
        half = len(embeddings) // 2
        total = embeddings[:half] + embeddings[half:]
        norms = np.linalg.norm(total, axis=1, keepdims=True)
        return np.asarray(total / np.maximum(norms, 1e-12), dtype=np.float32)


class MirrorEmbedder:
    """Embeds an image as the mean of the embeddings of the image and of its mirror image."""

    def __init__(self, inner: Embedder) -> None:
        self._inner = inner
        self.dim, self.size, self.interpolation = inner.dim, inner.size, inner.interpolation
        self.runtime, self.precision, self.threads = inner.runtime, inner.precision, inner.threads

    def embed(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :class:`Embedder`."""
        return self.begin(batch).result()

    def begin(self, batch: NDArray[np.uint8]) -> Pending:
        """See :class:`AsyncEmbedder`."""
        return _Mirrored(_begin(self._inner, np.concatenate([batch, batch[:, :, ::-1]])))


def _begin(embedder: Embedder, batch: NDArray[np.uint8]) -> Pending:
    return embedder.begin(batch) if isinstance(embedder, AsyncEmbedder) else _Done(embedder.embed(batch))


def embed_all(
    embedders: Mapping[str, Embedder], batches: Mapping[tuple[int, str], NDArray[np.uint8]]
) -> dict[str, NDArray[np.float32]]:
    """Embed a batch with all members, several at the same time where the runtime allows it.

    Args:
        embedders: By the name of the member.
        batches: (B, size, size, 3) uint8 RGB images, by (size, interpolation).

    Returns:
        (B, dim) float32 unit vectors by member.
    """
    at_once = len(embedders) if any(e.runtime == "torch-cuda" for e in embedders.values()) else _CONCURRENT_ON_CPU
    done: dict[str, NDArray[np.float32]] = {}
    under_way: dict[str, Pending] = {}
    for name, member in embedders.items():
        if len(under_way) == at_once:
            first = next(iter(under_way))
            done[first] = under_way.pop(first).result()
        under_way[name] = _begin(member, batches[member.size, member.interpolation])
    return done | {name: batch.result() for name, batch in under_way.items()}


def load_embedder(
    member: MemberSpec,
    device: str = "auto",
    runtime: str = "auto",
    precision: str = "auto",
    pictures: Pictures | None = None,
) -> Embedder:
    """Load a member's model.

    Args:
        device: ``auto`` (CUDA where there is a GPU), ``cpu`` or ``cuda``.
        runtime: ``auto`` (OpenVINO on a CPU where it is installed), ``openvino`` or ``torch``.
        precision: ``auto`` (half precision where the device computes it at full speed and the embeddings agree with
            those of float32), ``f32``, ``bf16``, ``f16``, or ``int8`` (OpenVINO only; a member that is no faster with
            it, or whose embeddings differ too much, stays in float32).
        pictures: Gives the images that calibrate ``int8``; needed when a member is quantised for the first time.

    Raises:
        EnsembleError: Unknown backend or model, weights that do not fit or cannot be downloaded, or a runtime or
            precision that was asked for by name and does not agree with eager float32.
        ConfigurationError: The device, runtime or precision is not available.
    """
    if member.backend not in BACKENDS:
        raise EnsembleError(
            f"member {member.name!r} asks for backend {member.backend!r}; known are {', '.join(BACKENDS)}",
            reason="BACKEND_UNKNOWN",
        )
    if precision == Precision.INT8:
        embedder = _load_int8(member, device, runtime, pictures)
    else:
        embedder = _load(member, device, runtime, precision)
    return MirrorEmbedder(embedder) if member.mirror else embedder


def _load(member: MemberSpec, device: str, runtime: str, precision: str) -> Embedder:
    module, _, function = BACKENDS[member.backend].partition(":")
    if (kept := cached_ir(member, device, runtime, precision)) is not None:
        return kept
    with explained(member):
        load = getattr(importlib.import_module(module), function)
        return cast(Embedder, load(member, device, runtime, precision))


def _load_int8(member: MemberSpec, device: str, runtime: str, pictures: Pictures | None) -> Embedder:
    choose_precisions(choose_runtime(device, runtime), Precision.INT8)
    if member.backend == "openvino":
        raise EnsembleError(
            f"member {member.name!r} is a model file, whose numbers are its own: quantise the file, or leave out "
            "--precision",
            reason="PRECISION_UNSUPPORTED",
        )
    plain = _load(member, device, "openvino", Precision.F32)
    assert isinstance(plain, OpenVinoEmbedder)
    with explained(member):
        return in_eight_bits(plain, member, pictures or (lambda size, _: np.zeros((0, size, size, 3), np.uint8)))


@contextmanager
def explained(member: MemberSpec) -> Iterator[None]:
    """Turn the exceptions of libraries that load a member into an error with one sentence about the member.

    Raises:
        EnsembleError: ``BACKEND_MISSING`` or ``MODEL_UNUSABLE``.
    """
    try:
        yield
    except CbirError:
        raise
    except ModuleNotFoundError as error:
        raise EnsembleError(
            f"member {member.name!r} needs the package {error.name}: pip install 'ensemble-cbir[indexer]'",
            reason="BACKEND_MISSING",
        ) from error
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        detail = " ".join(str(error).split())[:300]
        raise EnsembleError(
            f"member {member.name!r}: {member.backend} model {member.model!r} with weights {member.weights!r} "
            f"cannot be loaded ({detail}): check model, options and weights",
            reason="MODEL_UNUSABLE",
        ) from error
