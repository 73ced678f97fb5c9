"""Which queries a command line means."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cbir.client import ImageId, InvalidQuery, Text

__all__ = ["IMAGE_SUFFIXES", "NamedQuery", "named_queries"]

#: What is taken from a folder; a file that is named itself is sent whatever it is called.
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"))


@dataclass(frozen=True, slots=True)
class NamedQuery:
    """A query and what to call it.

    Attributes:
        name: What the user called it.
        query: What is sent; None: nothing but the positive examples.
        expected: The label its hits should carry, if that is known.
    """

    name: str
    query: str | bytes | ImageId | Text | None
    expected: str | None = None


def named_queries(
    images: Sequence[str], ids: Sequence[str], texts: Sequence[str] = (), expect: str | None = None
) -> list[NamedQuery]:
    """Return the queries of a command line.

    Args:
        images: Files, ``-`` for standard input, and folders. A folder stands for the images below it, in order of
            their paths; its first sub-folders are their labels, as when it is indexed.
        ids: Ids of gallery images.
        texts: Words to search by.
        expect: The label all hits should carry, in place of what the folders say.

    Raises:
        InvalidQuery: A folder without images.
    """
    queries: list[NamedQuery] = []
    for name in images:
        if name == "-":
            queries.append(NamedQuery("-", sys.stdin.buffer.read(), expect))
        elif Path(name).is_dir():
            found = [
                NamedQuery(str(path), str(path), expect or _first_folder(path, Path(name)))
                for path in _images_below(Path(name))
            ]
            if not found:
                raise InvalidQuery(f"the folder {name!r} holds no images: give image files or a folder of them")
            queries.extend(found)
        else:
            # Also what does not exist: it is reported in its turn and does not stop the rest.
            queries.append(NamedQuery(name, name, expect))
    queries.extend(NamedQuery(name, ImageId(name), expect) for name in ids)
    queries.extend(NamedQuery(words.strip() or '""', Text(words), expect) for words in texts)
    return queries


def _images_below(folder: Path) -> Iterable[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _first_folder(path: Path, folder: Path) -> str | None:
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else None
