"""Run a torch module on a runtime, where its embeddings agree with those of eager float32."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cbir.core.ensemble.runtime.agreement import disagreement, probe
from cbir.core.ensemble.runtime.choice import Precision, choose_precisions, choose_runtime
from cbir.core.ensemble.runtime.conversion import compile_checked, convert, keep_ir
from cbir.core.ensemble.runtime.cuda import CudaEmbedder
from cbir.core.ensemble.runtime.eager import TorchEmbedder
from cbir.core.ensemble.runtime.input_format import InputFormat
from cbir.core.ensemble.runtime.openvino import OpenVinoEmbedder
from cbir.core.ensemble.spec import MemberSpec
from cbir.core.errors import EnsembleError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["run_network", "run_on_gpu"]

_log = logging.getLogger(__name__)


def run_network(
    module: nn.Module, form: InputFormat, device: str, runtime: str, member: MemberSpec, precision: str = "auto"
) -> TorchEmbedder | CudaEmbedder | OpenVinoEmbedder:
    """Load a torch module onto a runtime.

    Args:
        member: The module's member; its fingerprint names the converted network in the cache.
        precision: A value of :class:`Precision`.

    Raises:
        ConfigurationError: The device, runtime or precision is not available.
        EnsembleError: ``RUNTIME_DISAGREES``: a runtime or precision that was asked for by name does not agree with
            eager float32.  Where the choice is automatic, the next one is tried instead.
    """
    chosen = choose_runtime(device, runtime)
    precisions = choose_precisions(chosen, precision)
    eager = TorchEmbedder(module, form)
    if chosen == "torch-cpu":
        return eager
    reference = eager.embed(probe(form.size))
    if chosen == "torch-cuda":
        return run_on_gpu(module, form, precisions, reference)
    try:
        converted = convert(module, form)
        embedder = compile_checked(converted, form.size, form.interpolation, precisions, reference)
    except (RuntimeError, EnsembleError) as error:
        problem = " ".join(str(error).split())[:240]
    else:
        keep_ir(converted, form, member, reference)
        return embedder
    if runtime == "openvino" or precision != Precision.AUTO:
        raise EnsembleError(
            f"OpenVINO cannot run this member faithfully ({problem}): use --runtime torch", reason="RUNTIME_DISAGREES"
        )
    _log.warning("OpenVINO is not used for a member (%s); torch runs it", problem)
    return eager


def run_on_gpu(
    module: nn.Module,
    form: InputFormat,
    precisions: tuple[Precision, ...],
    reference: NDArray[np.float32],
    place: str = "cuda",
) -> CudaEmbedder:
    """Load a module onto the GPU in the first precision that agrees, with converted weights or else by autocast.

    Args:
        reference: (2, D) the pictures of :func:`cbir.core.ensemble.runtime.agreement.probe` embedded by eager float32.
        place: torch's name of the device.

    Raises:
        EnsembleError: ``RUNTIME_DISAGREES``: no precision agrees.
    """
    pictures = probe(form.size)
    problem: str | None = None
    for precision in precisions:
        for autocast in (False,) if precision is Precision.F32 else (False, True):
            try:
                embedder = CudaEmbedder(module, form, precision, autocast=autocast, place=place)
                problem = disagreement(embedder.embed(pictures), reference)
            except (RuntimeError, TypeError) as error:  # an operation that refuses mixed or half precision
                problem = " ".join(str(error).split())[:160]
            if problem is None:
                return embedder
            way = f"{precision}{', by torch.autocast' if autocast else ''}"
            _log.warning("a member is not run in %s on the GPU: %s", way, problem)
    raise EnsembleError(
        f"the GPU cannot run this member faithfully in {' or '.join(precisions)} ({problem}): use --precision f32, or "
        "--device cpu",
        reason="RUNTIME_DISAGREES",
    )
