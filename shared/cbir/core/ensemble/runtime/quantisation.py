"""Quantisation of networks to 8-bit integers after training, calibrated with images of the gallery."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.ensemble.runtime.agreement import disagreement, probe
from cbir.core.ensemble.runtime.choice import Precision
from cbir.core.ensemble.runtime.conversion import ir_folder, keep_folder
from cbir.core.ensemble.runtime.openvino import OpenVinoEmbedder, import_openvino, openvino_core
from cbir.core.ensemble.runtime.pointwise import as_convolutions, other_products
from cbir.core.ensemble.spec import MemberSpec
from cbir.core.errors import ConfigurationError

__all__ = ["LEAST_COSINE", "Pictures", "in_eight_bits"]

_log = logging.getLogger(__name__)

#: Version of the files in a folder of the cache.
_LAYOUT = 3

#: Returns (N, size, size, 3) uint8 RGB images for calibration, for a size and an interpolation.
Pictures = Callable[[int, str], NDArray[np.uint8]]

#: Least mean cosine to float32, over images that were not used for calibration.  Eight bits cannot reach 0.999; with
#: 0.985, search results were as good as with float32.
LEAST_COSINE = 0.97
#: From this cosine on, no further quantisation scheme is tried.
_GOOD_COSINE = 0.99
#: Least speed-up over float32 for which 8-bit integers are used.
LEAST_GAIN = 1.05
#: How many of the images check the result and are not used for calibration.
_HELD_OUT = 16


def in_eight_bits(plain: OpenVinoEmbedder, member: MemberSpec, pictures: Pictures) -> OpenVinoEmbedder:
    """The network in 8-bit integers; or ``plain`` itself where they are no faster or the embeddings differ too much.

    The outcome is cached for the next start.

    Args:
        plain: The network in float32, which must be in the cache of converted networks.
        pictures: Gives the images for calibration; called only where nothing is cached.

    Raises:
        ConfigurationError: ``CALIBRATION_MISSING``: too few images for calibration.
    """
    folder = ir_folder(member).with_name(f"{ir_folder(member).name}-int8-{_LAYOUT}")
    try:
        reason = (folder / "stays-float32.txt").read_text(encoding="utf-8")
    except OSError:
        kept = _kept(folder, plain)
        if kept is not None:
            return kept
        embedder, model, reason = _quantised(plain, member, pictures)

        def write(place: Path) -> None:
            if reason:
                (place / "stays-float32.txt").write_text(reason, encoding="utf-8")
            else:
                import_openvino().save_model(model, place / "model.xml", compress_to_fp16=False)
                np.save(place / "own.npy", embedder.embed(probe(plain.size)))

        keep_folder(folder, write)
        if not reason:
            return embedder
    _log.warning("member %r stays in float32: %s", member.name, reason)
    return plain


def _kept(folder: Path, plain: OpenVinoEmbedder) -> OpenVinoEmbedder | None:
    """The network quantised at an earlier start; None where it is not cached or its embeddings have changed since."""
    try:
        embedder = _embedder(openvino_core().read_model(folder / "model.xml"), plain)
        own = np.load(folder / "own.npy")
    except (OSError, ValueError, RuntimeError):
        return None
    return embedder if disagreement(embedder.embed(probe(plain.size)), own) is None else None


def _quantised(plain: OpenVinoEmbedder, member: MemberSpec, pictures: Pictures) -> tuple[OpenVinoEmbedder, Any, str]:
    """The network in 8-bit integers, its model, and the reason not to use it; empty where it is good."""
    images = pictures(plain.size, plain.interpolation)
    if len(images) < 2 * _HELD_OUT:
        raise ConfigurationError(
            f"only {len(images)} images could be read to calibrate 8-bit integers with, of at least {2 * _HELD_OUT}: "
            "make the indexed files readable here, or leave --precision out",
            reason="CALIBRATION_MISSING",
        )
    held_out, calibration = images[:_HELD_OUT], images[_HELD_OUT:]
    expected = plain.embed(held_out)
    convolutions = _convolutions_are_faster(member, plain, held_out)
    tried: list[tuple[float, OpenVinoEmbedder, Any]] = []
    # The schemes choose differently what stays in float32.  Which one suits a network cannot be told in advance.
    for scheme in ("default", "transformer"):
        model = _quantise(_network(member, convolutions), calibration, scheme)
        embedder = _embedder(model, plain)
        cosine = float(np.nan_to_num((embedder.embed(held_out) * expected).sum(axis=1).mean(), nan=-1.0))
        tried.append((cosine, embedder, model))
        if cosine >= _GOOD_COSINE:
            break
    cosine, embedder, model = max(tried, key=lambda one: one[0])
    gain = _seconds(plain, held_out) / _seconds(embedder, held_out)
    reason = ""
    if cosine < LEAST_COSINE:
        reason = f"8-bit integers are not enough for it (mean cosine {cosine:.3f}, less than {LEAST_COSINE})"
    elif gain < LEAST_GAIN:
        reason = f"8-bit integers are no faster here ({gain:.2f} times)"
    return embedder, model, reason


def _convolutions_are_faster(member: MemberSpec, plain: OpenVinoEmbedder, held_out: NDArray[np.uint8]) -> bool:
    """Whether the network's linear layers are faster as convolutions on this processor.

    One image calibrates both variants, as the quality of the calibration does not change the speed.
    """
    if not as_convolutions(_network(member, False)):
        return False
    plainly, convolved = (
        _embedder(_quantise(_network(member, way), held_out[:1], "default"), plain) for way in (False, True)
    )
    return _seconds(convolved, held_out) < _seconds(plainly, held_out)


def _network(member: MemberSpec, convolutions: bool) -> Any:
    model = openvino_core().read_model(ir_folder(member) / "model.xml")
    if convolutions:
        as_convolutions(model)
    return model


def _embedder(model: Any, plain: OpenVinoEmbedder) -> OpenVinoEmbedder:
    return OpenVinoEmbedder(model, plain.size, plain.interpolation, Precision.INT8)


def _seconds(embedder: OpenVinoEmbedder, images: NDArray[np.uint8]) -> float:
    """Seconds for a batch: the shortest of five runs."""
    embedder.embed(images)
    best = np.inf
    for _ in range(5):
        begun = perf_counter()
        embedder.embed(images)
        best = min(best, perf_counter() - begun)
    return best


def _quantise(model: Any, images: NDArray[np.uint8], scheme: str) -> Any:
    import_openvino()  # first: this blocks telemetry, which NNCF has too
    # NNCF prints its progress to stdout, which is for results.
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nncf

        logging.getLogger("nncf").setLevel(logging.ERROR)
        kind = nncf.ModelType.TRANSFORMER if scheme == "transformer" else None
        data = nncf.Dataset([image[None] for image in images])
        # Attention and heads stay in float32: they are a small part of the work and lose most accuracy.  Leaving out
        # one head raised a cosine from 0.65 to 0.997.
        apart = nncf.IgnoredScope(names=other_products(model))
        return nncf.quantize(model, data, subset_size=len(images), model_type=kind, ignored_scope=apart)
