"""The embedding cache: what was computed from images, by the digest of their bytes, so nothing is embedded twice.

Each member fingerprint has a folder of safetensors files, the blocks: ``keys`` (n, 32) uint8, SHA-256 digests of image
files, and ``values`` (n, D), for embeddings float16 unit vectors.  A block is written under another name and renamed
when it is complete, so a killed run loses at most the block that it was filling.  Writers need no lock, because each
writes blocks of its own.  The name of a block is the SHA-256 of its bytes, so damage is found before the block is used.

Blocks are mapped and never read whole: what is in memory is 16 bytes a digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from cbir.core.artifacts.cache_block import CacheBlock
from cbir.core.artifacts.digest_index import DigestIndex, Places
from cbir.core.files import file_sha256, make_folder, sync, write_durably

__all__ = ["EmbeddingCache", "is_damaged"]

#: Fewest blocks that are worth merging, and the size up to which a block is merged, in rows.
_MIN_BLOCKS_TO_MERGE = 64
_MERGED_ROWS = 65_536
#: Age after which an incomplete block is taken to be left by a killed process.
_ABANDONED_SECONDS = 3600
#: Blocks were called by chance before they were called by their checksum; such are read as they are.
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
#: A place is the number of a block and the row in it.
_ROW_BITS = 32
#: Blocks that are mapped at a time, and rows that are asked for when a block is read through.
_MAPPED, _MANY = 64, 1024

Digests = NDArray[np.uint8]


class EmbeddingCache:
    """The raw embeddings of one member, or other rows of numbers computed from image files.

    Args:
        folder: Holds one folder a fingerprint.
        fingerprint: Of everything that determines the values.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder / fingerprint
        self._lock = threading.RLock()
        self._scan()

    def _scan(self) -> None:
        self._blocks: list[CacheBlock] = []
        self._sound: set[int] = set()
        self._mapped: OrderedDict[int, tuple[Digests, NDArray[Any]]] = OrderedDict()
        index = DigestIndex(self._digests_at)
        if self.folder.is_dir():
            for path in sorted(self.folder.glob("*.safetensors")):
                try:
                    self._take(CacheBlock.open(path), index)
                except ValueError:
                    # A damaged block is deleted, and its images are embedded again.
                    path.unlink(missing_ok=True)
                except OSError:
                    continue  # merged by another process meanwhile, or not readable by this user
        self._index = index

    def _take(self, block: CacheBlock, index: DigestIndex) -> int:
        """List a block's digests, but for those that other blocks hold too; return its number."""
        number = len(self._blocks)
        self._blocks.append(block)
        keys = np.asarray(block.keys())
        new = np.flatnonzero(index.find(keys) < 0)
        index.add(keys[new], new.astype(np.int64) + (number << _ROW_BITS))
        return number

    def _maps(self, number: int) -> tuple[Digests, NDArray[Any]]:
        with self._lock:
            maps = self._mapped.pop(number, None)
            if maps is None:
                block = self._blocks[number]
                maps = block.keys(), block.values()
            self._mapped[number] = maps
            if len(self._mapped) > _MAPPED:
                self._mapped.popitem(last=False)
        return maps

    def _digests_at(self, places: Places) -> Digests:
        return cast(Digests, self._gathered(places, 0))

    def _gathered(self, places: Places, part: int) -> NDArray[Any]:
        """The digests (0) or values (1) at (n,) places."""
        numbers, rows = places >> _ROW_BITS, places & ((1 << _ROW_BITS) - 1)
        result: NDArray[Any] | None = None
        for number in np.unique(numbers).tolist():
            source = self._maps(number)[part]
            here = numbers == number
            if result is None:
                result = np.empty((len(places), source.shape[1]), source.dtype)
            result[here] = source[rows[here]]
            if len(places) >= _MANY and (mapped := getattr(source, "_mmap", None)) is not None:
                # Pages that were read once count as this process's memory until they are let go.
                mapped.madvise(mmap.MADV_DONTNEED)
        if result is None:
            return np.empty((0, 32), np.uint8)
        return result

    def __contains__(self, key: bytes) -> bool:
        with self._retried():
            place = self._index.find_one(key)
            return place >= 0 and (self._check(place >> _ROW_BITS) or key in self)
        return False

    def __len__(self) -> int:
        for number in range(len(self._blocks)):
            self._check(number)
        return len(self._index)

    def holds(self, digests: Digests) -> NDArray[np.bool_]:
        """(n,) which of (n, 32) digests it holds."""
        with self._retried():
            return self._find(digests) >= 0
        return np.zeros(len(digests), np.bool_)

    def _find(self, digests: Digests) -> Places:
        while True:
            places = self._index.find(digests)
            numbers = np.unique(places[places >= 0] >> _ROW_BITS).tolist()
            if all(self._check(number) for number in numbers):
                return places

    def _check(self, number: int) -> bool:
        """Compare a block with its checksum, when it is first used; forget it where it is damaged."""
        if number in self._sound:
            return True
        with self._lock:
            path = self._blocks[number].path
            if number in self._sound:
                return True
            if path.exists() and is_damaged(path):
                path.unlink(missing_ok=True)
            if path.exists():
                self._sound.add(number)
                return True
            self._index.forget(lambda places: places >> _ROW_BITS == number)
            return False

    @contextlib.contextmanager
    def _retried(self) -> Iterator[None]:
        """List the blocks again where another indexer merged them meanwhile; the answer is then that of no find."""
        try:
            yield
        except FileNotFoundError:
            with self._lock:
                self._scan()

    def take_in(self, name: str) -> None:
        """Learn of a block of this name that another process wrote into the folder."""
        path = self.folder / name
        try:
            with self._lock:
                self._take(CacheBlock.open(path), self._index)
        except ValueError:
            path.unlink(missing_ok=True)
        except OSError:
            return  # merged by another process meanwhile, or not readable by this user

    def put(self, keys: Sequence[bytes], values: NDArray[Any]) -> Path | None:
        """Write a block of 32-byte digests and their (n, D) values; it is on disk when this returns.

        Returns:
            The block's file, or None where there were no digests.
        """
        if not len(keys):
            return None
        digests = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 32)
        with self._lock:
            block = self._write(digests, values)
            self._sound.add(self._take(block, self._index))
        return block.path

    def _write(self, digests: Digests, values: NDArray[Any]) -> CacheBlock:
        make_folder(self.folder)
        data = save({"keys": np.ascontiguousarray(digests), "values": np.ascontiguousarray(values)})
        path = self.folder / f"{hashlib.sha256(data).hexdigest()}.safetensors"
        partial = path.with_name(f"{secrets.token_hex(8)}.partial")
        write_durably(partial, data)
        partial.replace(path)
        sync(self.folder)
        return CacheBlock.open(path)

    def get(self, keys: Iterable[bytes] | Digests) -> NDArray[Any]:
        """The (n, D) values of n digests, in their order.

        Args:
            keys: Digests, or all of them as one (n, 32) array.

        Raises:
            KeyError: A digest is missing, or none was asked for.
        """
        if not isinstance(keys, np.ndarray):
            keys = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)
        if not len(keys):
            raise KeyError("no embeddings were asked for")
        for last in (False, True):
            try:
                places = self._find(keys)
                if (places < 0).any():
                    raise KeyError(keys[int(np.argmin(places))].tobytes().hex())
                return self._gathered(places, 1)
            except FileNotFoundError:
                # Another indexer merged the blocks meanwhile: list them again.
                if last:
                    raise
                self._scan()
        raise AssertionError

    def compact(self) -> None:
        """Merge small blocks where there are many; call while no other process writes."""
        with contextlib.suppress(OSError):
            for leftover in self.folder.glob("*.partial"):
                # A recent one may be a block that another process is writing.
                if time.time() - leftover.stat().st_mtime > _ABANDONED_SECONDS:
                    leftover.unlink()
        small = [n for n, block in enumerate(self._blocks) if block.rows < _MERGED_ROWS and self._check(n)]
        if len(small) < _MIN_BLOCKS_TO_MERGE:
            return
        group: list[int] = []
        rows = 0
        for number in small:
            group.append(number)
            rows += self._blocks[number].rows
            if rows >= _MERGED_ROWS:
                self._merge(group)
                group, rows = [], 0
        if len(group) > 1:
            self._merge(group)
        self._scan()

    def _merge(self, numbers: Sequence[int]) -> None:
        """Write one block with the rows of several, and remove these."""
        keys, values = zip(*((block.keys(), block.values()) for block in map(self._blocks.__getitem__, numbers)),
                           strict=True)  # fmt: skip
        merged = self._write(np.concatenate(keys), np.concatenate(values))
        for number in numbers:
            if (path := self._blocks[number].path) != merged.path:
                path.unlink(missing_ok=True)

    def discard(self, keep: Container[bytes]) -> int:
        """Delete every embedding whose digest is not in ``keep``; return how many were deleted."""
        gone = 0
        for number, block in enumerate(self._blocks):
            if not self._check(number):
                continue
            keys = block.keys()
            kept = np.fromiter((key.tobytes() in keep for key in keys), np.bool_, block.rows)
            gone += int((~kept).sum())
            if kept.all():
                continue
            if kept.any():
                self._write(keys[kept], block.values()[kept])
            block.path.unlink(missing_ok=True)
        if gone:
            self._scan()
            self.compact()
        return gone


def is_damaged(path: Path) -> bool:
    """Whether a block of a cache has other bytes than its name says.

    Raises:
        OSError: It cannot be read.
    """
    return _CHECKSUM.fullmatch(path.stem) is not None and file_sha256(path) != path.stem
