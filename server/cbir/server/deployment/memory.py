"""Whether a second version fits into memory beside the one that answers."""

from __future__ import annotations

from cbir.core.artifacts import IndexVersion
from cbir.core.ensemble import EnsembleSpec
from cbir.core.errors import ConfigurationError
from cbir.core.machine import available_bytes

__all__ = ["available_bytes", "check_memory", "needed_bytes"]

#: float32 in memory takes twice what float16 takes in the file, and there is a copy of a part while it is made.
_OF_VECTORS = 3
#: Tables are compressed on the disk, and held as Python strings besides.
_OF_TABLES = 8
#: A runtime holds its own copy of the weights, and one for each core's own batches.
_OF_WEIGHTS = 3
_PART = 0.9


def needed_bytes(version: IndexVersion, ensemble: EnsembleSpec, known: set[str]) -> int:
    """A rough bound of the memory that a version takes.

    Args:
        known: Fingerprints of the models that are loaded already, and are shared.
    """
    total = 0
    for name, facts in version.manifest.files.items():
        total += int(facts["size"]) * (_OF_TABLES if name.endswith(".parquet") else _OF_VECTORS)
    for member in ensemble.members:
        file = member.weights_file
        if file is not None and version.manifest.members[member.name]["fingerprint"] not in known:
            total += file.stat().st_size * _OF_WEIGHTS
    return total


def check_memory(version: IndexVersion, ensemble: EnsembleSpec, known: set[str], available: int | None) -> None:
    """Refuse a version that would not fit beside the one that answers.

    Raises:
        ConfigurationError: ``MEMORY_SHORT``.
    """
    needed = needed_bytes(version, ensemble, known)
    if available is not None and needed > available * _PART:
        raise ConfigurationError(
            f"the version {version.name} may take {needed / 2**20:,.0f} MiB beside the one that answers, and "
            f"{available / 2**20:,.0f} MiB are free: restart the server to change over, or give it more memory",
            reason="MEMORY_SHORT",
        )
