"""The machine and the software that the figures were measured on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["cores", "machine_facts", "processor"]

#: CPU features that decide how fast it multiplies matrices.
_CAPABILITIES = ("avx2", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
_PACKAGES = ("ensemble-cbir", "grpcio", "numpy", "openvino", "pillow", "protobuf", "torch")


def machine_facts() -> dict[str, Any]:
    """CPU, cores, memory, load, and the versions of the packages that matter."""
    cpu = _cpu_fields()
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "capabilities": [name for name in _CAPABILITIES if name in flags],
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        # Load of other programs, as this runs before the first measurement: on a busy machine all figures are worse.
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def processor() -> dict[str, Any]:
    """What tells processors apart by speed: model, features (named by a digest, as there are many), cores."""
    cpu = _cpu_fields()
    flags = cpu.get("flags") or cpu.get("Features") or ""
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "features": hashlib.blake2b(" ".join(sorted(flags.split())).encode(), digest_size=8).hexdigest(),
        "cores": cores(),
    }


def _cpu_fields() -> dict[str, str]:
    """The fields of the first processor in ``/proc/cpuinfo``; empty on systems without it."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
