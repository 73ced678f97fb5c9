"""Choice of runtime and precision: what was asked for, resolved against what this machine has."""

from __future__ import annotations

import importlib.util
import os
from enum import StrEnum
from pathlib import Path

from cbir.core.ensemble.runtime.openvino import openvino_core
from cbir.core.errors import ConfigurationError

__all__ = ["FORCED", "Precision", "choose_precisions", "choose_runtime"]

#: Environment variable: what OpenVINO computes in where no option says it, in every program.
FORCED = "CBIR_OPENVINO_PRECISION"


class Precision(StrEnum):
    """The numbers that a network computes with."""

    AUTO = "auto"
    F32 = "f32"
    BF16 = "bf16"
    F16 = "f16"
    INT8 = "int8"


def choose_runtime(device: str, runtime: str) -> str:
    """Resolve ``auto`` to ``torch-cuda``, ``openvino`` or ``torch-cpu``.

    Raises:
        ConfigurationError: ``cuda`` without a GPU, ``openvino`` without the package, or an unknown name.
    """
    if device not in ("auto", "cpu", "cuda") or runtime not in ("auto", "torch", "openvino"):
        raise ConfigurationError(
            f"device {device!r} with runtime {runtime!r}: devices are auto, cpu, cuda; runtimes auto, torch, openvino",
            reason="DEVICE_UNKNOWN",
        )
    has_openvino = importlib.util.find_spec("openvino") is not None
    if runtime == "openvino":
        if device == "cuda":
            raise ConfigurationError("OpenVINO runs on the CPU: drop --device cuda", reason="DEVICE_UNKNOWN")
        if not has_openvino:
            raise ConfigurationError(
                "OpenVINO is not installed: pip install 'ensemble-cbir[openvino]'", reason="RUNTIME_MISSING"
            )
        return "openvino"
    if device != "cpu" and _cuda_available():
        return "torch-cuda"
    if device == "cuda":
        raise ConfigurationError(
            "no CUDA GPU can be used here: drop --device cuda, or check the driver with nvidia-smi",
            reason="DEVICE_MISSING",
        )
    return "openvino" if has_openvino and runtime == "auto" else "torch-cpu"


def choose_precisions(runtime: str, precision: str) -> tuple[Precision, ...]:
    """The precisions to try on a runtime, fastest first; the first that agrees with eager float32 is used.

    Args:
        runtime: From :func:`choose_runtime`.
        precision: A value of :class:`Precision`; ``auto`` gives the half precision that the hardware computes at full
            speed, where it has one, and then float32.  With OpenVINO ``$CBIR_OPENVINO_PRECISION`` (f32, bf16 or f16),
            where it is set, is taken in place of ``auto``.

    Raises:
        ConfigurationError: ``PRECISION_UNKNOWN``, or ``PRECISION_MISSING`` where this machine cannot compute in it.
    """
    if precision not in tuple(Precision):
        raise ConfigurationError(
            f"precision {precision!r} is unknown; it must be one of {', '.join(Precision)}", reason="PRECISION_UNKNOWN"
        )
    if precision == Precision.INT8:
        return _int8(runtime)
    if precision == Precision.AUTO and runtime == "openvino":
        precision = _forced()
    there = (*_half_precisions(runtime), Precision.F32)
    if precision == Precision.AUTO:
        # Both half precisions are equally fast; bfloat16, which comes first, does not overflow.
        return there if len(there) == 1 else (there[0], Precision.F32)
    if precision not in there:
        raise ConfigurationError(
            f"{runtime} has no {precision} arithmetic on this machine, only {', '.join(there)}: leave --precision out"
            + (f", and {FORCED} unset" if os.environ.get(FORCED) == precision else ""),
            reason="PRECISION_MISSING",
        )
    return (Precision(precision),)


def _forced() -> str:
    """What the environment asks OpenVINO for, ``auto`` if nothing."""
    wanted = os.environ.get(FORCED) or Precision.AUTO
    if wanted not in (Precision.AUTO, Precision.F32, Precision.BF16, Precision.F16):
        raise ConfigurationError(
            f"the environment variable {FORCED} is {wanted!r}; it must be one of f32, bf16, f16, or not set",
            reason="PRECISION_UNKNOWN",
        )
    return wanted


def _int8(runtime: str) -> tuple[Precision, ...]:
    if runtime != "openvino":
        raise ConfigurationError(
            f"{runtime} has no int8 arithmetic here, OpenVINO on a CPU has: give --device cpu --runtime openvino, or "
            "leave --precision out",
            reason="PRECISION_MISSING",
        )
    if importlib.util.find_spec("nncf") is None:
        raise ConfigurationError(
            "int8 needs the package nncf: pip install 'ensemble-cbir[int8]', or leave --precision out",
            reason="PRECISION_MISSING",
        )
    return (Precision.INT8,)


def _half_precisions(runtime: str) -> tuple[Precision, ...]:
    if runtime == "openvino":
        capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        names = {"BF16": Precision.BF16, "FP16": Precision.F16}
        return tuple(precision for name, precision in names.items() if name in capabilities)
    if runtime == "torch-cuda":
        import torch

        # GPUs before the Ampere generation only emulate bfloat16, slowly.
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return (Precision.BF16, Precision.F16) if has_bf16 else (Precision.F16,)
    return ()


def _cuda_available() -> bool:
    # Importing torch takes seconds, which a machine without NVIDIA's device files can save.
    if os.name == "posix" and not any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")):
        return False
    import torch

    return bool(torch.cuda.is_available())
