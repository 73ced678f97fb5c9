"""Many files of images as one source: WebDataset shards, img2dataset's output, data sets of Hugging Face on disk.

Shards are scanned several at a time; an image's id begins with the name of its shard, so that it stays when others are
added or removed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from cbir.core.errors import SourceError
from cbir.core.files import nfc
from cbir.indexer.sources.archive import TarSource, ZipSource
from cbir.indexer.sources.image import ScanProblem, Source, SourceImage
from cbir.indexer.sources.place import LocalPlace, Place
from cbir.indexer.sources.table_images import TableSource, holds_images

__all__ = ["SHARD_KINDS", "ShardPart", "ShardSource", "braces", "shards_in"]

SHARD_KINDS: dict[str, Callable[[Place, Sequence[str]], Source]] = {
    ".tar": TarSource,
    ".zip": ZipSource,
    ".parquet": TableSource,
    ".arrow": TableSource,
}
#: Shards that are scanned at a time.
_AHEAD = 4
_BRACES = re.compile(r"(.*?)\{(\d+)\.\.(\d+)\}(.*)", re.DOTALL)
_MOST_SHARDS = 1_000_000


@dataclass(frozen=True)
class ShardPart:
    """One shard that was read.

    Attributes:
        uri: Where it is.
        stamp: Changes when it does.
        images: How many it holds.
    """

    uri: str
    stamp: str
    images: int


class ShardSource:
    """The images of several archives or tables.

    Attributes:
        parts: What the last :meth:`scan` read.
    """

    def __init__(self, name: str, places: Iterable[Place], exclude: Sequence[str] = ()) -> None:
        self.name = name
        self.names_ids = False
        self.problems: list[ScanProblem] = []
        self.parts: list[ShardPart] = []
        self._exclude = tuple(exclude)
        self._places = tuple(sorted(places, key=lambda place: place.uri))
        self._prefixes = _prefixes([place.uri for place in self._places])

    def stamps(self) -> list[tuple[str, str]]:
        """Where the shards are, and their stamps now."""
        with ThreadPoolExecutor(_AHEAD) as pool:
            return list(pool.map(lambda place: (place.uri, place.stamp()), self._places))

    def scan(self) -> Iterator[SourceImage]:
        """Find the images, shard by shard; see :class:`~cbir.indexer.sources.image.Source`."""
        self.problems, self.parts = [], []
        todo = iter(zip(self._places, self._prefixes, strict=True))
        flight: deque[Future[tuple[ShardPart, list[SourceImage], list[ScanProblem]]]] = deque()
        with ThreadPoolExecutor(_AHEAD, "cbir-scan") as pool:
            while True:
                while len(flight) < _AHEAD and (one := next(todo, None)) is not None:
                    flight.append(pool.submit(self._read, *one))
                if not flight:
                    return
                part, images, problems = flight.popleft().result()
                self.parts.append(part)
                self.problems += problems
                yield from images

    def _read(self, place: Place, prefix: str) -> tuple[ShardPart, list[SourceImage], list[ScanProblem]]:
        stamp = place.stamp()
        source = SHARD_KINDS[PurePosixPath(place.name).suffix.lower()](place, self._exclude)
        found = (image if source.names_ids else replace(image, id=f"{prefix}/{image.id}") for image in source.scan())
        images = list(found)
        return ShardPart(place.uri, stamp, len(images)), images, list(source.problems)


def _prefixes(uris: Sequence[str]) -> list[str]:
    """A short name for each shard: its path without the folders that all share, and without its suffix."""
    if not uris:
        return []
    paths = [uri.split("/") for uri in uris]
    low, high = min(paths), max(paths)
    shared = 0
    while shared < min(len(low), len(high)) - 1 and low[shared] == high[shared]:
        shared += 1
    return [nfc("/".join(path[min(shared, len(path) - 1) :]).rpartition(".")[0]) for path in paths]


def braces(name: str) -> list[str]:
    """The names that ``shard-{000..123}.tar`` stands for; the name alone where it has no braces.

    Raises:
        SourceError: They stand for more than a million.
    """
    match = _BRACES.fullmatch(name)
    if match is None:
        return [name]
    head, first, last, tail = match.groups()
    if len(first) > len(str(_MOST_SHARDS)) + 6 or not 0 <= int(last) - int(first) < _MOST_SHARDS:
        raise SourceError(f"{name} stands for no shards, or for more than a million", reason="SOURCE_FORMAT")
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    return [f"{head}{number:0{width}}{tail}" for number in range(int(first), int(last) + 1)]


def shards_in(folder: Path) -> list[Place]:
    """The shards that a folder consists of: none where it holds images or folders, which are then what is meant.

    A data set of Hugging Face with several parts has them in folders of its own.
    """
    if (folder / "dataset_dict.json").is_file():
        parts = sorted(entry for entry in folder.iterdir() if (entry / "state.json").is_file())
        return [place for part in parts for place in shards_in(part)]
    found: dict[str, list[Place]] = {}
    for entry in folder.iterdir():
        if entry.name.startswith((".", "cache-")):
            continue
        if entry.is_dir():
            return []
        found.setdefault(entry.suffix.lower(), []).append(LocalPlace(entry))
    if found.keys() & _images():
        return []
    for kind in (".tar", ".arrow", ".parquet"):
        # The tables that img2dataset writes beside its tars hold no images.
        if kind in found:
            return [p for p in found[kind] if kind != ".parquet" or holds_images(Path(p.uri))]
    return []


def _images() -> frozenset[str]:
    from cbir.indexer.sources.names import image_extensions

    return image_extensions()
