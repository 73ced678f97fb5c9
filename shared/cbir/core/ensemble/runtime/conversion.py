"""Conversion of networks for OpenVINO, cached on disk with eager float32's embeddings of the built-in pictures."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.ensemble.fingerprint import member_fingerprint
from cbir.core.ensemble.runtime.agreement import disagreement, probe
from cbir.core.ensemble.runtime.choice import Precision, choose_precisions, choose_runtime
from cbir.core.ensemble.runtime.input_format import InputFormat
from cbir.core.ensemble.runtime.openvino import OpenVinoEmbedder, import_openvino, openvino_core, with_preprocessing
from cbir.core.ensemble.spec import MemberSpec
from cbir.core.errors import EnsembleError
from cbir.core.images import Crop
from cbir.core.machine import cache_folder

if TYPE_CHECKING:
    from torch import nn

__all__ = ["cached_ir", "compile_checked", "convert", "ir_folder", "keep_folder", "keep_ir"]

_log = logging.getLogger(__name__)

#: Version of the files in a folder of the cache; folders of other versions are not read.
_LAYOUT = 2


def convert(module: nn.Module, form: InputFormat) -> Any:
    """Convert a torch module to an OpenVINO model that takes (B, S, S, 3) uint8 images.

    Raises:
        RuntimeError: OpenVINO does not support one of the module's operations.
    """
    ov = import_openvino()
    import torch

    # With gradients, torch's attention takes a different path each time it is traced, and tracing fails.
    with warnings.catch_warnings(), torch.no_grad():
        # OpenVINO's converter traces the module, which torch warns of as deprecated.
        warnings.simplefilter("ignore")
        model = ov.convert_model(module, example_input=torch.zeros(2, 3, form.size, form.size))
    model.reshape([-1, 3, form.size, form.size])
    return with_preprocessing(model, form, "NCHW")


def compile_checked(
    model: Any,
    size: int,
    interpolation: str,
    precisions: tuple[Precision, ...],
    reference: NDArray[np.float32] | None = None,
) -> OpenVinoEmbedder:
    """Compile a model in the first of the given precisions whose embeddings agree with eager float32.

    Args:
        reference: (2, D) the pictures of :func:`.agreement.probe` embedded by eager float32.  None for a model file,
            which torch cannot run: OpenVINO's own float32 is then the reference.

    Raises:
        EnsembleError: ``RUNTIME_DISAGREES``: no precision agrees.
    """
    pictures = probe(size)
    if reference is None and precisions != (Precision.F32,):
        reference = OpenVinoEmbedder(model, size, interpolation).embed(pictures)
    problem = None
    for precision in precisions:
        embedder = OpenVinoEmbedder(model, size, interpolation, precision)
        problem = None if reference is None else disagreement(embedder.embed(pictures), reference)
        if problem is None:
            return embedder
        _log.warning("a member is not run in %s by OpenVINO: %s", precision, problem)
    raise EnsembleError(
        f"OpenVINO cannot run this member faithfully in {' or '.join(precisions)} ({problem}): use --runtime torch, or "
        "--precision f32",
        reason="RUNTIME_DISAGREES",
    )


def cached_ir(member: MemberSpec, device: str, runtime: str, precision: str = "auto") -> OpenVinoEmbedder | None:
    """The network from the cache of an earlier start, without torch and conversion; None where it is not there.

    Raises:
        ConfigurationError: The runtime or precision is not available.
        EnsembleError: ``RUNTIME_DISAGREES``: in the precision that was asked for, its embeddings do not agree with
            those of eager float32.
    """
    if member.backend == "openvino" or choose_runtime(device, runtime) != "openvino":
        return None
    precisions = choose_precisions("openvino", precision)
    folder = ir_folder(member)
    try:
        form = json.loads((folder / "input.json").read_text())
        reference = np.load(folder / "reference.npy")
        model = openvino_core().read_model(folder / "model.xml")
        return compile_checked(model, form["size"], form["interpolation"], precisions, reference)
    except EnsembleError:
        if Precision.F32 not in precisions:
            raise
        # Even float32 does not agree, so the cached network is not usable: convert again.
        return None
    except (OSError, ValueError, KeyError, RuntimeError):
        return None


def keep_ir(model: Any, form: InputFormat, member: MemberSpec, reference: NDArray[np.float32]) -> None:
    """Cache a converted network for the next start, and replace what was there.

    Args:
        reference: (2, D) the pictures of :func:`cbir.core.ensemble.runtime.agreement.probe`, embedded by eager float32.
    """

    def write(folder: Path) -> None:
        import_openvino().save_model(model, folder / "model.xml", compress_to_fp16=False)
        (folder / "input.json").write_text(json.dumps(asdict(form)))
        np.save(folder / "reference.npy", reference)

    keep_folder(ir_folder(member), write)


def keep_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder of the cache, and put it in place of the old one when it is complete; failing is no error."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        try:
            write(partial)
            if folder.exists():
                folder.rename(partial / "before")
            partial.rename(folder)
            shutil.rmtree(folder / "before", ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        _log.info("the converted network is not kept (%s): the next start converts it again", error)


def ir_folder(member: MemberSpec) -> Path:
    """The folder of a member's converted network in the cache."""
    # From the metadata, because importing openvino takes a second.
    version = importlib.metadata.version("openvino")
    return cache_folder() / "openvino" / f"{version}-{_LAYOUT}" / member_fingerprint(member, Crop.NONE)
