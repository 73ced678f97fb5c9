"""What a machine can do at most, measured here and now: the rate of matrix products and of copies, and its name."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

#: What decides how fast a CPU multiplies.
CAPABILITIES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")


def machine(place: str = "cpu") -> dict[str, Any]:
    """CPU, cores and its vector instructions; the GPU too where that is the place."""
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


def told(facts: dict[str, Any]) -> str:
    """The machine in a line."""
    return f"{facts['cpu']}, {facts['cores']} cores, {', '.join(facts['capabilities'])}; load {facts['load_before']}"


def operations(work: Callable[[], object]) -> float:
    """Floating-point operations of the forward passes that some work makes."""
    # Attention that is fused into one kernel is one that the counter does not know, and counts as nothing.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return float(counter.get_total_flops())


def matrix_rate(place: str, dtype: torch.dtype, side: int, seconds: float = 2.0) -> float:
    """Floating-point operations a second in a square product, the best of as many as fit into ``seconds``."""
    a, b = (torch.randn(side, side, device=place).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    best, begun = float("inf"), perf_counter()
    torch.mm(a, b, out=out)
    while perf_counter() - begun < seconds:
        best = min(best, timed(lambda: torch.mm(a, b, out=out), place))
    return 2 * side**3 / best


def copy_rate(place: str, mebibytes: int, seconds: float = 1.0) -> float:
    """Bytes a second that a copy within the memory of a device moves, read and written ones counted both."""
    source = torch.zeros(mebibytes * 2**20, dtype=torch.uint8, device=place)
    target = torch.zeros_like(source)
    best, begun = float("inf"), perf_counter()
    while perf_counter() - begun < seconds:
        best = min(best, timed(lambda: target.copy_(source), place))
    return 2 * len(source) / best


def upload_rate(mebibytes: int) -> float:
    """Bytes a second from pinned memory to the GPU, the best of ten."""
    source = torch.zeros(mebibytes * 2**20, dtype=torch.uint8, pin_memory=True)
    target = torch.zeros_like(source, device="cuda")
    return len(source) / min(timed(lambda: target.copy_(source, non_blocking=True), "cuda") for _ in range(10))


def timed(work: Any, place: str = "cpu") -> float:
    """Seconds that some work takes; on a GPU, until it is done there."""
    if place == "cuda":
        torch.cuda.synchronize()
    begun = perf_counter()
    work()
    if place == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - begun
