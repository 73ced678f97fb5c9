"""The queries that the arguments of a command line stand for."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cbir.client import ImageId, InvalidQuery, Text
from cbir.client.cli.image_folder import images_below

__all__ = ["NamedQuery", "named_queries"]


@dataclass(frozen=True, slots=True)
class NamedQuery:
    """A query and its name.

    Attributes:
        name: The name that the user gave it.
        query: The query that is sent; None for the positive examples alone.
        expected: The label that its hits should have, if known.
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
            their paths, the same as in indexing; the names of its direct sub-folders are their labels.
        ids: Ids of gallery images.
        texts: Text queries.
        expect: The label that all hits should have, instead of the folders' names.

    Raises:
        InvalidQuery: A folder has no images.
    """
    queries: list[NamedQuery] = []
    for name in images:
        if name == "-":
            queries.append(NamedQuery("-", sys.stdin.buffer.read(), expect))
        elif Path(name).is_dir():
            found = [
                NamedQuery(str(path), str(path), expect or _first_folder(path, Path(name)))
                for path in images_below(Path(name))
            ]
            if not found:
                raise InvalidQuery(f"the folder {name!r} holds no images: give image files or a folder of them")
            queries.extend(found)
        else:
            # Paths that do not exist too: the error is reported in the query's turn, and the other queries go on.
            queries.append(NamedQuery(name, name, expect))
    queries.extend(NamedQuery(name, ImageId(name), expect) for name in ids)
    queries.extend(NamedQuery(words.strip() or '""', Text(words), expect) for words in texts)
    return queries


def _first_folder(path: Path, folder: Path) -> str | None:
    parts = path.relative_to(folder).parts
    return unicodedata.normalize("NFC", parts[0]) if len(parts) > 1 else None
