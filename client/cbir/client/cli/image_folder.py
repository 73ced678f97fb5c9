"""The images below a folder: the same that ``cbir index`` and ``cbir eval`` find there.

The client is installed without the indexer, hence this second, plainer walk; a test compares the two on all kinds of
folders.
"""

from __future__ import annotations

import importlib.util
import os
from collections import deque
from functools import cache
from pathlib import Path, PurePath
from stat import S_ISREG

__all__ = ["images_below"]

_IMAGES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".avif", ".avifs",
)  # fmt: skip
#: Extensions of formats that are read where a package is installed.
_EXTRA = {"pillow_heif": (".heic", ".heif", ".hif", ".heics", ".heifs"), "pillow_jxl": (".jxl",)}
#: Folders that systems put among those of their users, in lower case.
_SYSTEM_FOLDERS = frozenset((
    "__macosx", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin", "recycler",
    "system volume information", "lost+found",
))  # fmt: skip


def images_below(folder: Path) -> list[Path]:
    """Return the image files at any depth below a folder, in order of their paths.

    Hidden files and folders, and those of the system, are ignored; links are followed, and a folder that is reached
    twice is read once.  What cannot be looked at is passed over.
    """
    found: list[Path] = []
    real: deque[Path] = deque([folder])
    linked: deque[Path] = deque()
    seen: set[tuple[int, int] | str] = set()
    while real or linked:
        # Links come last, so that a folder is found under its own name.
        here = real.popleft() if real else linked.popleft()
        try:
            status = here.stat()
            place = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(here)
            if place in seen:
                continue
            seen.add(place)
            with os.scandir(here) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except (OSError, ValueError):
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FOLDERS:
                continue
            try:
                if entry.is_dir():
                    (linked if entry.is_symlink() else real).append(here / entry.name)
                elif _is_image(entry):
                    found.append(here / entry.name)
            except OSError:
                continue
    return sorted(found)


def _is_image(entry: os.DirEntry[str]) -> bool:
    return PurePath(entry.name).suffix.lower() in _extensions() and S_ISREG(entry.stat().st_mode)


@cache
def _extensions() -> frozenset[str]:
    installed = (ends for package, ends in _EXTRA.items() if importlib.util.find_spec(package) is not None)
    return frozenset((*_IMAGES, *(end for ends in installed for end in ends)))
