"""What an embedder is, how one is loaded, and how an image is prepared for it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cbir.core.crop import Box
from cbir.core.embedders import BACKENDS
from cbir.core.ensemble import MemberSpec
from cbir.core.errors import CbirError, EnsembleError
from cbir.core.runtime import cached_ir

__all__ = ["Embedder", "explained", "load_embedder", "prepare"]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}


class Embedder(Protocol):
    """One member's model on one device.  Not safe for concurrent calls: it has one caller at a time.

    Attributes:
        dim: Length of an embedding, before projection.
        size: Side of the square input in pixels.
        interpolation: How images are resampled to that square.
        runtime: ``openvino``, ``torch-cpu`` or ``torch-cuda``.
    """

    dim: int
    size: int
    interpolation: str
    runtime: str

    def embed(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed (B, size, size, 3) uint8 RGB images as (B, dim) float32 unit vectors."""
        ...


class MirrorEmbedder:
    """Embeds an image as the mean of its embedding and its mirror image's: what both agree on is what it shows."""

    def __init__(self, inner: Embedder) -> None:
        self._inner = inner
        self.dim, self.size, self.interpolation, self.runtime = (
            inner.dim,
            inner.size,
            inner.interpolation,
            inner.runtime,
        )

    def embed(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :class:`Embedder`."""
        both = self._inner.embed(np.concatenate([batch, batch[:, :, ::-1]]))
        total = both[: len(batch)] + both[len(batch) :]
        norms = np.linalg.norm(total, axis=1, keepdims=True)
        return np.asarray(total / np.maximum(norms, 1e-12), dtype=np.float32)


def load_embedder(member: MemberSpec, device: str = "auto", runtime: str = "auto") -> Embedder:
    """Load a member's model.

    Args:
        device: ``auto`` (CUDA where there is a GPU), ``cpu`` or ``cuda``.
        runtime: ``auto`` (OpenVINO on a CPU where it is installed), ``openvino`` or ``torch``.

    Raises:
        EnsembleError: Unknown backend or model, weights that do not fit or cannot be fetched.
        ConfigurationError: The device or runtime is not there.
    """
    if member.backend not in BACKENDS:
        raise EnsembleError(
            f"member {member.name!r} asks for backend {member.backend!r}; known are {', '.join(BACKENDS)}",
            reason="BACKEND_UNKNOWN",
        )
    module, _, function = BACKENDS[member.backend].partition(":")
    embedder: Embedder | None = cached_ir(member, device, runtime)
    if embedder is None:
        with explained(member):
            embedder = cast(Embedder, getattr(importlib.import_module(module), function)(member, device, runtime))
    return MirrorEmbedder(embedder) if member.mirror else embedder


@contextmanager
def explained(member: MemberSpec) -> Iterator[None]:
    """Turn what libraries raise while a member is loaded into one sentence about the member.

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


def prepare(pixels: NDArray[np.uint8], box: Box, size: int, interpolation: str) -> NDArray[np.uint8]:
    """Cut ``box`` out of (H, W, 3) pixels and resample it to (size, size, 3), squashing the aspect ratio.

    Squashing keeps the whole content in view; a centre crop would lose what lies at the ends of wide photos.
    """
    region = pixels[box.top : box.bottom, box.left : box.right]
    resized = Image.fromarray(np.ascontiguousarray(region)).resize((size, size), _RESAMPLING[interpolation])
    return np.asarray(resized, dtype=np.uint8)
