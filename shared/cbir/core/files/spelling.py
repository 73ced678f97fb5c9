"""Names with accents are spelt in two ways: one letter (NFC, most systems) or letter and accent (NFD, macOS).

Both look alike and mean the same.  Ids and labels are kept in NFC; where a file lies is kept as the disk spells it.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

__all__ = ["Spellings", "nfc"]


def nfc(text: str) -> str:
    """Return the one spelling that names are compared in."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class Spellings:
    """Finds files however their names are spelt; remembers what lies in a folder once it was looked into."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, list[str]]] = {}

    def on_disk(self, path: Path) -> Path:
        """Return an absolute path as the disk spells it, the path itself where nothing there means the same."""
        if str(path).isascii() or os.path.lexists(path):
            return path
        return self._find(Path(path.anchor), path.parts[1:]) or path

    def _find(self, here: Path, parts: tuple[str, ...]) -> Path | None:
        if not parts:
            return here if os.path.lexists(here) else None
        part, *rest = parts
        # A folder may be there in both spellings, and what is looked for in either.
        names = [part] if part.isascii() else self._inside(here).get(nfc(part), [part])
        found = (self._find(here / name, tuple(rest)) for name in names)
        return next((path for path in found if path is not None), None)

    def _inside(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._folders:
            try:
                names = sorted(path.name for path in folder.iterdir())
            except OSError:
                names = []
            spellings: dict[str, list[str]] = {}
            for name in names:
                if not name.isascii():
                    spellings.setdefault(nfc(name), []).append(name)
            self._folders[folder] = spellings
        return self._folders[folder]
