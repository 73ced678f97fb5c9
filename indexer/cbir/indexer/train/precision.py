"""Mixed precision: half floats where the machine computes them faster, float32 elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from cbir.core.errors import ConfigurationError

__all__ = ["Precision", "choose_precision"]

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: Any of them means that bf16 is computed, not emulated (which is many times slower than float32).
_CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16")


@dataclass(frozen=True)
class Precision:
    """How forward passes are computed on a device.

    Attributes:
        half: Type of autocast, or None for float32 throughout.
        scaled: Whether gradients need a scaler (fp16 underflows).
    """

    device: str
    half: torch.dtype | None
    scaled: bool

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        return torch.autocast(self.device, self.half or torch.bfloat16, enabled=self.half is not None)


def choose_precision(device: str, wanted: str = "auto") -> Precision:
    """Precision for ``cuda`` or ``cpu``; ``auto`` takes bf16 where it is computed, on older GPUs fp16, else float32.

    Raises:
        ConfigurationError: An unknown name, or fp16 on a CPU.
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
    # Releases of torch before 2.9 do not say what the CPU can: float32 is right everywhere.
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if any(known.get(name) for name in _CPU_BF16) else "float32"
