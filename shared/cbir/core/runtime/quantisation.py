"""Networks in 8-bit integers: quantised after training, on images like those that they will see."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.ensemble import MemberSpec
from cbir.core.errors import ConfigurationError, EnsembleError
from cbir.core.runtime.agreement import disagreement, probe
from cbir.core.runtime.choice import Precision
from cbir.core.runtime.conversion import ir_folder, keep_folder
from cbir.core.runtime.openvino import OpenVinoEmbedder, import_openvino, openvino_core

__all__ = ["LEAST_COSINE", "Pictures", "cached_int8", "quantised"]

#: Gives (N, size, size, 3) uint8 RGB images to calibrate with, for a size and a resampling.
Pictures = Callable[[int, str], NDArray[np.uint8]]

#: Least mean cosine to float32, over images that the calibration has not seen.  Eight bits cannot agree to 0.999; where
#: they agreed to 0.985, what was found was as good as with float32.
LEAST_COSINE = 0.97
#: Of the images, how many are kept out of the calibration to judge it.
_JUDGES = 16


def quantised(plain: OpenVinoEmbedder, member: MemberSpec, pictures: Pictures) -> OpenVinoEmbedder:
    """The same network in 8-bit integers, kept for the next start.

    Args:
        plain: In float32, from the network that is kept in the cache.

    Raises:
        ConfigurationError: ``CALIBRATION_MISSING``: too few images to calibrate with.
        EnsembleError: ``RUNTIME_DISAGREES``: eight bits are not enough for this network.
    """
    images = pictures(plain.size, plain.interpolation)
    if len(images) < 2 * _JUDGES:
        raise ConfigurationError(
            f"only {len(images)} images could be read to calibrate 8-bit integers with, of at least {2 * _JUDGES}: "
            "make the indexed files readable here, or leave --precision out",
            reason="CALIBRATION_MISSING",
        )
    judges, calibrating = images[:_JUDGES], images[_JUDGES:]
    model = _quantise(openvino_core().read_model(ir_folder(member) / "model.xml"), calibrating)
    embedder = OpenVinoEmbedder(model, plain.size, plain.interpolation, Precision.INT8)
    cosine = float((embedder.embed(judges) * plain.embed(judges)).sum(axis=1).mean())
    if not cosine >= LEAST_COSINE:
        raise EnsembleError(
            f"8-bit integers are not enough for member {member.name!r} (mean cosine {cosine:.3f} to float32, less than "
            f"{LEAST_COSINE}): leave --precision out",
            reason="RUNTIME_DISAGREES",
        )

    def write(folder: Path) -> None:
        import_openvino().save_model(model, folder / "model.xml", compress_to_fp16=False)
        np.save(folder / "own.npy", embedder.embed(probe(plain.size)))

    keep_folder(_folder(member), write)
    return embedder


def cached_int8(member: MemberSpec, size: int, interpolation: str) -> OpenVinoEmbedder | None:
    """The network quantised at an earlier start, if it still computes what it did then."""
    try:
        model = openvino_core().read_model(_folder(member) / "model.xml")
        embedder = OpenVinoEmbedder(model, size, interpolation, Precision.INT8)
        kept = np.load(_folder(member) / "own.npy")
    except (OSError, ValueError, RuntimeError):
        return None
    return embedder if disagreement(embedder.embed(probe(size)), kept) is None else None


def _quantise(model: Any, images: NDArray[np.uint8]) -> Any:
    import_openvino()  # first: without its telemetry, of which NNCF has the same
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nncf

        nncf.set_log_level(logging.ERROR)
        return nncf.quantize(model, nncf.Dataset([image[None] for image in images]), subset_size=len(images))


def _folder(member: MemberSpec) -> Path:
    return ir_folder(member).with_name(f"{ir_folder(member).name}-int8")
