"""Mixed precision: bf16 or fp16 where the hardware computes it faster, float32 elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from cbir.core.errors import ConfigurationError

__all__ = ["Precision", "choose_precision"]

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: CPU features of which any one means bf16 in hardware; emulated bf16 is many times slower than float32.
_CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16")


@dataclass(frozen=True)
class Precision:
    """How forward passes are computed on a device.

    Attributes:
        half: The type that autocast uses; None for float32 throughout.
        scaled: Whether gradients need a scaler, as those of fp16 would underflow.
    """

    device: str
    half: torch.dtype | None
    scaled: bool

    def autocast(self) -> AbstractContextManager[Any]:
        """The autocast context to run a forward pass in."""
        return torch.autocast(self.device, self.half or torch.bfloat16, enabled=self.half is not None)


def choose_precision(device: str, wanted: str = "auto") -> Precision:
    """Choose the precision for a device, ``cuda`` or ``cpu``.

    ``auto`` is bf16 where the hardware has it, fp16 on older GPUs, and float32 on other CPUs.

    Raises:
        ConfigurationError: The name is unknown, or fp16 is asked for on a CPU.
    """
    if wanted == "auto":
        wanted = _best(device)
    if wanted == "float32":
        return Precision(device, None, False)
    if wanted not in _HALVES or (device == "cpu" and wanted == "fp16"):
        raise ConfigurationError(
            f"precision {wanted!r} on {device}: known are auto, float32 and bf16, and fp16 on a GPU",
            reason="BAD_RECIPE",
        )
    return Precision(device, _HALVES[wanted], wanted == "fp16")


def _best(device: str) -> str:
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Before 2.9, torch does not report the CPU's features; float32 always works.
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if any(known.get(name) for name in _CPU_BF16) else "float32"
