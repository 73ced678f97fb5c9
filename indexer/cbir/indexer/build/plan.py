"""The plan of a run: the images that were found, in a database on disk, compared with the live version.

Images are found in any order and number.  They are written to a SQLite file as they come, sorted there, and read back
in the order of their ids, beside the live version's table, which has that order too.  What is kept of an image between
these steps is a few bytes in mapped files: the row that it has in the live version, and the digest of its bytes.

N images found.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.indexer.build.image_facts import ImageFacts, SkippedImage
from cbir.indexer.build.image_sources import ImageSources
from cbir.indexer.build.live_rows import LiveRow
from cbir.indexer.sources import ScanProblem, SourceImage

__all__ = ["LEFT_OUT", "NEW", "Plan"]

#: In place of the row in the live version: to be read; not in the next version.
NEW, LEFT_OUT = -1, -2
_PIECE = 4096
#: What SQLite may keep in memory of its file, in KiB.
_CACHE_KIB = 8_192
_COLUMNS = "number, source, id, uri, label, stamp, metadata"
_TABLE = "number INTEGER PRIMARY KEY, source INTEGER, id TEXT, uri TEXT, label TEXT, stamp TEXT, metadata TEXT"
_PREFIX = ".plan-"


class Plan:
    """What was found and what is to be done.  A context manager: its files are removed at the end.

    Args:
        folder: Where its files are kept; what killed runs left of theirs is removed.

    Attributes:
        count: N.
        rows: (N,) by place in the order of ids: the row of the live version that stays as it is, NEW or LEFT_OUT.
        digests: (N, 32) SHA-256 of the images' bytes, where it is known.
        skipped: Images left out that the live version left out for the same reason.
        twins: Images that share their id with another.
        before: (N, 32) the digest that the live version has for the same id, zeros where it has none.
        unchanged: Every image of the live version is found again and has the same label and metadata.
    """

    count: int
    rows: NDArray[np.int64]
    digests: NDArray[np.uint8]
    before: NDArray[np.uint8]

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
        self._database = self._connect()
        self.skipped: list[SkippedImage] = []
        self.twins: list[ScanProblem] = []
        self.unchanged = False
        self._waiting: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, *exception: object) -> None:
        self._database.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self) -> sqlite3.Connection:
        # A runner may ask for images on a thread of its own.
        database = sqlite3.connect(self._folder / "images.sqlite", isolation_level=None, check_same_thread=False)
        # It outlives nobody: nothing need be on the disk for sure, and nothing is ever undone.
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}", "temp_store=FILE"):
            database.execute(f"PRAGMA {pragma}")
        return database

    def array(self, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """An array in a file of the plan's, all zero, that lives as long as the plan."""
        if 0 in shape:
            return np.zeros(shape, dtype)
        with (self._folder / name).open("wb") as file:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            file.truncate(size)
            # A full disk is told now, where that can be asked (not on macOS): a write to a page that has no place would
            # kill the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
        # As a plain array, of which single numbers are read several times as fast.
        return np.asarray(np.memmap(self._folder / name, dtype, "r+", 0, shape))

    def find(self, sources: ImageSources) -> None:
        """Write down what the sources hold, in the order of ids.

        Raises:
            SourceError: A source cannot be read, or two images have one id.
        """
        database = self._database
        database.execute(f"CREATE TABLE found ({_TABLE})")
        last, ordered, count = "", True, 0

        def cells() -> Iterator[tuple[object, ...]]:
            nonlocal last, ordered, count
            for source, image in sources.stream():
                ordered = ordered and image.id > last
                last, count = image.id, count + 1
                yield source, image.id, image.uri, image.label, image.stamp, _text(image.metadata)

        with self._telling():
            database.execute("BEGIN")
            self._write(cells())
            if not ordered:
                self._sort()
            database.execute("COMMIT")
        self.count = count
        self.rows = self.array("rows", "i8", (count,))
        self.digests = self.array("digests", "u1", (count, 32))
        self.before = self.array("before", "u1", (count, 32))

    def _write(self, cells: Iterator[tuple[object, ...]]) -> None:
        statement = "INSERT INTO found (source, id, uri, label, stamp, metadata) VALUES (?, ?, ?, ?, ?, ?)"
        self._database.executemany(statement, cells)

    def _sort(self) -> None:
        self._database.execute(f"CREATE TABLE ordered ({_TABLE})")
        # SQLite compares bytes of UTF-8, which gives the order of Python's strings.
        self._database.execute(
            "INSERT INTO ordered (source, id, uri, label, stamp, metadata) "
            "SELECT source, id, uri, label, stamp, metadata FROM found ORDER BY id, number"
        )
        self._database.execute("DROP TABLE found")
        self._database.execute("ALTER TABLE ordered RENAME TO found")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell of a full disk as whoever writes files does."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "full" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder)) from error

    def compare(
        self,
        sources: ImageSources,
        live: Iterable[LiveRow],
        holds: Callable[[NDArray[np.uint8]], NDArray[np.bool_]],
        refused: Mapping[tuple[str, str], Mapping[str, str]],
        *,
        again: bool = False,
    ) -> None:
        """Decide what becomes of every image that was found.

        Args:
            live: The rows of the live version in the order of ids.
            holds: Tells for (n, 32) digests which of them the cache knows everything about.
            refused: What the live version left out and need not be tried again, by uri and stamp.
            again: Read everything again, whatever the live version says.

        Raises:
            SourceError: Two images have one id.
        """
        before = iter(live)
        old = next(before, None)
        self.unchanged = not again
        twin: tuple[int, SourceImage] | None = None
        for piece in self._pieces():
            states: list[int] = []
            same: list[tuple[int, LiveRow, SourceImage]] = []
            for place, source, image in piece:
                if twin is not None and twin[1].id == image.id:
                    self.twins.append(sources.settle(image, source, twin[1], twin[0]))
                    states.append(LEFT_OUT)
                    continue
                twin = source, image
                while old is not None and old.id < image.id:
                    self.unchanged = False
                    old = next(before, None)
                states.append(NEW)
                known = None if again else refused.get((image.uri, image.stamp))
                if old is not None and old.id == image.id:
                    self.before[place] = np.frombuffer(old.digest, np.uint8)
                    if (old.uri, old.stamp) == (image.uri, image.stamp) and not again:
                        same.append((place, old, image))
                        known = None
                    else:
                        self.unchanged = False
                    old = next(before, None)
                if known is not None:
                    self.skipped.append(SkippedImage(image.uri, known["reason"], known["code"], image.stamp))
                    states[-1] = LEFT_OUT
            self.rows[piece[0][0] : piece[0][0] + len(piece)] = states
            self._keep(same, holds)
        self.unchanged = self.unchanged and old is None

    def _keep(
        self,
        same: list[tuple[int, LiveRow, SourceImage]],
        holds: Callable[[NDArray[np.uint8]], NDArray[np.bool_]],
    ) -> None:
        if not same:
            return
        digests = np.frombuffer(b"".join(row.digest for _, row, _ in same), np.uint8).reshape(-1, 32)
        known = holds(digests)
        alike = np.array([(r.label, r.metadata) == (i.label, dict(i.metadata)) for _, r, i in same])
        places = np.array([place for place, _, _ in same])
        numbers = np.array([row.number for _, row, _ in same])
        self.digests[places[known]] = digests[known]
        # A row that says something new of the same bytes is written anew.
        self.rows[places[known & alike]] = numbers[known & alike]
        self.unchanged = self.unchanged and bool((known & alike).all())

    def todo(self) -> Iterator[SourceImage]:
        """The images that must be read, in the order of ids."""
        for piece in self._pieces(self._connect()):
            for place, _, image in piece:
                if self.rows[place] == NEW and not self.digests[place].any():
                    with self._lock:
                        self._waiting[image.id] = place
                    yield image

    @property
    def todo_count(self) -> int:
        """How many images :meth:`todo` gives."""
        total = 0
        for start in range(0, self.count, 65_536):
            part = slice(start, start + 65_536)
            total += int(((self.rows[part] == NEW) & ~self.digests[part].any(axis=1)).sum())
        return total

    def done(self, images: Iterable[tuple[SourceImage, ImageFacts]], skipped: Iterable[SkippedImage]) -> None:
        """Take down what became of images of :meth:`todo`."""
        for image, facts in images:
            with self._lock:
                place = self._waiting.pop(image.id)
            self.digests[place] = np.frombuffer(facts.sha256, np.uint8)
        self.skipped += skipped

    def finish(self) -> tuple[int, int, int]:
        """Leave out what was not embedded.

        Returns:
            How many images the next version has, how many of these the live one lacks, and how many have other bytes
            there.
        """
        total = added = changed = 0
        for start in range(0, self.count, 65_536):
            part = slice(start, start + 65_536)
            rows, digests, before = self.rows[part], self.digests[part], self.before[part]
            rows[(rows == NEW) & ~digests.any(axis=1)] = LEFT_OUT
            there, old = rows != LEFT_OUT, before.any(axis=1)
            total += int(there.sum())
            added += int((there & ~old).sum())
            changed += int((there & old & (digests != before).any(axis=1)).sum())
        return total, added, changed

    def between(self, first: int, last: int) -> Iterator[tuple[int, SourceImage]]:
        """Place and image of the places from ``first`` to before ``last``."""
        for piece in self._pieces(where=f"WHERE number > {first:d} AND number <= {last:d}"):
            for place, _, image in piece:
                yield place, image

    def _pieces(
        self, database: sqlite3.Connection | None = None, where: str = ""
    ) -> Iterator[list[tuple[int, int, SourceImage]]]:
        query = f"SELECT {_COLUMNS} FROM found {where} ORDER BY number"  # noqa: S608
        cursor = (database or self._database).execute(query)
        while rows := cursor.fetchmany(_PIECE):
            yield [
                (number - 1, source, SourceImage(name, uri, label, stamp, json.loads(told) if told else {}))
                for number, source, name, uri, label, stamp, told in rows
            ]


def _text(metadata: Mapping[str, str]) -> str | None:
    return json.dumps(dict(metadata), ensure_ascii=False) if metadata else None
