"""The queries that the arguments of a command line stand for."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cbir.client import ImageId, InvalidQuery, Text
from cbir.client.cli.image_folder import images_below

__all__ = ["NamedQuery", "listed_queries", "named_queries"]


@dataclass(frozen=True, slots=True)
class NamedQuery:
    """A query and its name.

    Attributes:
        name: The name that the user gave it.
        query: The query that is sent; None for the positive examples alone.
        expected: Labels of which its hits should have one; empty if none is known.
    """

    name: str
    query: str | bytes | ImageId | Text | None
    expected: tuple[str, ...] = ()


def named_queries(
    images: Sequence[str],
    ids: Sequence[str],
    texts: Sequence[str] = (),
    expect: tuple[str, ...] = (),
    *,
    folder_names: bool = False,
) -> list[NamedQuery]:
    """Return the queries of a command line.

    Args:
        images: Files, ``-`` for standard input, and folders. A folder stands for the images below it, in order of
            their paths, the same as in indexing; the names of its direct sub-folders are their labels.
        ids: Ids of gallery images.
        texts: Text queries.
        expect: Labels of which all hits should have one, instead of the folders' names.
        folder_names: A file's hits should have the name of the folder that it lies in as their label.

    Raises:
        InvalidQuery: A folder has no images.
    """
    queries: list[NamedQuery] = []
    for name in images:
        if name == "-":
            queries.append(NamedQuery("-", sys.stdin.buffer.read(), expect))
        elif Path(name).is_dir():
            found = []
            for path in images_below(Path(name)):
                own = _own_folder(path) if folder_names else expect or _first_folder(path, Path(name))
                found.append(NamedQuery(str(path), str(path), own))
            if not found:
                raise InvalidQuery(f"the folder {name!r} holds no images: give image files or a folder of them")
            queries.extend(found)
        else:
            # Paths that do not exist too: the error is reported in the query's turn, and the other queries go on.
            queries.append(NamedQuery(name, name, _own_folder(Path(name)) if folder_names else expect))
    queries.extend(NamedQuery(name, ImageId(name), expect) for name in ids)
    queries.extend(NamedQuery(words.strip() or '""', Text(words), expect) for words in texts)
    return queries


def listed_queries(listing: str, expect: tuple[str, ...] = (), *, folder_names: bool = False) -> Iterator[NamedQuery]:
    """The image files that a file names, one on each line; empty lines are left out.

    Args:
        listing: The file, or ``-`` for standard input; it is read as the queries are taken.
        expect: As :func:`named_queries` has it.
        folder_names: As :func:`named_queries` has it.

    Raises:
        OSError: It cannot be read.
    """
    with sys.stdin if listing == "-" else open(listing, encoding="utf-8", errors="surrogateescape") as lines:  # noqa: PTH123
        for line in lines:
            if name := line.rstrip("\r\n"):
                yield NamedQuery(name, name, _own_folder(Path(name)) if folder_names else expect)


def _first_folder(path: Path, folder: Path) -> tuple[str, ...]:
    parts = path.relative_to(folder).parts
    return (unicodedata.normalize("NFC", parts[0]),) if len(parts) > 1 else ()


def _own_folder(path: Path) -> tuple[str, ...]:
    name = path.absolute().parent.name
    return (unicodedata.normalize("NFC", name),) if name else ()
