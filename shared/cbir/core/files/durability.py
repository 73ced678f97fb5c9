"""Bytes and names that a power cut leaves as they are: what is published must be on the disk first."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync", "write_durably"]


def sync(path: Path) -> None:
    """Wait until the disk holds a file's bytes, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    """Write a UTF-8 text file and wait until the disk holds its bytes; its name takes :func:`sync` of the folder."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
