"""The machine's measured peak rates of matrix products and of copies, and a description of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

#: CPU features that decide how fast it multiplies matrices.
CAPABILITIES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")


def machine(place: str = "cpu") -> dict[str, Any]:
    """CPU, cores and vector instructions; for ``cuda`` also the GPU."""
    fields: dict[str, str] = {}
    if (info := Path("/proc/cpuinfo")).exists():
        lines = (line.partition(":") for line in info.read_text().partition("\n\n")[0].splitlines())
        fields = {key.strip(): value.strip() for key, _, value in lines}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": cores,
        "capabilities": [name for name in CAPABILITIES if name in fields.get("flags", "").split()],
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if place == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["gpu"] = {
            "name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda,
        }  # fmt: skip
    return facts


def one_line(facts: dict[str, Any]) -> str:
    """The description of the machine as one line of text."""
    return f"{facts['cpu']}, {facts['cores']} cores, {', '.join(facts['capabilities'])}; load {facts['load_before']}"


def operations(work: Callable[[], object]) -> float:
    """Floating-point operations of the forward passes in a call of ``work``."""
    # Off for the count: FlopCounterMode does not know fused attention kernels and would count them as nothing.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return float(counter.get_total_flops())


def matrix_rate(place: str, dtype: torch.dtype, side: int, seconds: float = 2.0) -> float:
    """Floating-point operations per second of a square matrix product, the best of as many as fit in ``seconds``."""
    a, b = (torch.randn(side, side, device=place).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    best, begun = float("inf"), perf_counter()
    torch.mm(a, b, out=out)
    while perf_counter() - begun < seconds:
        best = min(best, timed(lambda: torch.mm(a, b, out=out), place))
    return 2 * side**3 / best


def copy_rate(place: str, mebibytes: int, seconds: float = 1.0) -> float:
    """Bytes per second of copies within the device's memory, counting bytes read and bytes written."""
    source = torch.zeros(mebibytes * 2**20, dtype=torch.uint8, device=place)
    target = torch.zeros_like(source)
    best, begun = float("inf"), perf_counter()
    while perf_counter() - begun < seconds:
        best = min(best, timed(lambda: target.copy_(source), place))
    return 2 * len(source) / best


def upload_rate(mebibytes: int) -> float:
    """Bytes per second from pinned memory to the GPU, the best of ten copies."""
    source = torch.zeros(mebibytes * 2**20, dtype=torch.uint8, pin_memory=True)
    target = torch.zeros_like(source, device="cuda")
    return len(source) / min(timed(lambda: target.copy_(source, non_blocking=True), "cuda") for _ in range(10))


def timed(work: Any, place: str = "cpu") -> float:
    """Seconds that ``work`` takes; on a GPU, until the device has finished."""
    if place == "cuda":
        torch.cuda.synchronize()
    begun = perf_counter()
    work()
    if place == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - begun
