"""Durable writes: before a version is published, its files and their names must be on the disk, not only in caches."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync", "write_durably"]


def sync(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    """Write a UTF-8 text file and wait until its bytes are on the disk; for its name, :func:`sync` the folder."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
