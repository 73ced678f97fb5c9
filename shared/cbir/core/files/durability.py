"""Durable writes: before a version is published, its files and their names must be on the disk, not only in caches."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["make_folder", "remove", "sync", "sync_tree", "write_durably"]


def sync(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) and wait until its bytes are on the disk; for its name, :func:`sync` the folder."""
    with path.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def sync_tree(folder: Path) -> None:
    """Wait until the disk holds the names in a folder and in all folders below it."""
    for inner in sorted(p for p in folder.rglob("*") if p.is_dir()):
        sync(inner)
    sync(folder)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, and wait until the disk holds their names."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, and nothing that a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
