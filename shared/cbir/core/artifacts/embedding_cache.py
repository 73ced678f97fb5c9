"""The embedding cache: what was computed from images, by the digest of their bytes, so nothing is embedded twice.

Each member fingerprint has a folder of safetensors files, the blocks: ``keys`` (n, 32) uint8, SHA-256 digests of image
files, and ``values`` (n, D), for embeddings float16 unit vectors.  A block is written under another name and renamed
when it is complete, so a killed run loses at most the block that it was filling.  Writers need no lock, because each
writes blocks of its own.  The name of a block is the SHA-256 of its bytes, so damage is found before the block is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from cbir.core.files import file_sha256, make_folder, sync, write_durably

__all__ = ["EmbeddingCache", "is_damaged"]

#: Fewest blocks that are worth merging.
_MIN_BLOCKS_TO_MERGE = 64
#: Age after which an incomplete block is taken to be left by a killed process.
_ABANDONED_SECONDS = 3600
#: Blocks were called by chance before they were called by their checksum; such are read as they are.
_CHECKSUM = re.compile(r"[0-9a-f]{64}")


class EmbeddingCache:
    """The raw embeddings of one member, or other rows of numbers computed from image files.

    Args:
        folder: Holds one folder a fingerprint.
        fingerprint: Of everything that determines the values.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder / fingerprint
        self._place: dict[bytes, tuple[Path, int]] = {}
        self._last: tuple[Path, NDArray[Any]] | None = None
        self._scan()

    def _scan(self) -> None:
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob("*.safetensors")):
            self._look_up(path)

    def _look_up(self, path: Path) -> None:
        try:
            if is_damaged(path):
                path.unlink(missing_ok=True)
                return
            with safe_open(path, framework="numpy") as block:
                keys = block.get_tensor("keys")
        except SafetensorError:
            # A damaged block is deleted, and its images are embedded again.
            path.unlink(missing_ok=True)
            return
        except OSError:
            return  # merged by another process meanwhile, or not readable by this user
        for i, key in enumerate(keys):
            self._place[key.tobytes()] = (path, i)

    def take_in(self, name: str) -> None:
        """Learn of a block of this name that another process wrote into the folder."""
        self._look_up(self.folder / name)

    def __contains__(self, key: bytes) -> bool:
        return key in self._place

    def __len__(self) -> int:
        return len(self._place)

    def put(self, keys: list[bytes], values: NDArray[Any]) -> Path | None:
        """Write a block of 32-byte digests and their (n, D) values; it is on disk when this returns.

        Returns:
            The block's file, or None where there were no digests.
        """
        if not keys:
            return None
        make_folder(self.folder)
        digests = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 32)
        data = save({"keys": digests.copy(), "values": np.ascontiguousarray(values)})
        path = self.folder / f"{hashlib.sha256(data).hexdigest()}.safetensors"
        partial = path.with_name(f"{secrets.token_hex(8)}.partial")
        write_durably(partial, data)
        partial.replace(path)
        sync(self.folder)
        for i, key in enumerate(keys):
            self._place[key] = (path, i)
        return path

    def get(self, keys: Iterable[bytes]) -> NDArray[Any]:
        """The (n, D) values of n digests, in their order.

        Raises:
            KeyError: A digest is missing.
        """
        wanted = list(keys)
        try:
            return self._gather(wanted)
        except FileNotFoundError:
            # Another indexer merged the blocks meanwhile: list them again.
            self._place.clear()
            self._scan()
            return self._gather(wanted)

    def _gather(self, wanted: list[bytes]) -> NDArray[Any]:
        by_block: dict[Path, list[tuple[int, int]]] = {}
        for position, key in enumerate(wanted):
            path, row = self._place[key]
            by_block.setdefault(path, []).append((position, row))
        result: NDArray[Any] | None = None
        for path, places in by_block.items():
            block = self._block(path)
            if result is None:
                result = np.empty((len(wanted), block.shape[1]), block.dtype)
            positions, rows = np.array(places).T
            result[positions] = block[rows]
        if result is None:
            raise KeyError("no embeddings were asked for")
        return result

    def _block(self, path: Path) -> NDArray[Any]:
        # Images that are asked for one after another are mostly in the same block, so the last one is kept.
        last = self._last
        if last is None or last[0] != path:
            last = self._last = (path, load_file(path)["values"])
        return last[1]

    def compact(self) -> None:
        """Merge the blocks into one where there are many; call while no other process writes."""
        with contextlib.suppress(OSError):
            for leftover in self.folder.glob("*.partial"):
                # A recent one may be a block that another process is writing.
                if time.time() - leftover.stat().st_mtime > _ABANDONED_SECONDS:
                    leftover.unlink()
        blocks = {path for path, _ in self._place.values()}
        if len(blocks) < _MIN_BLOCKS_TO_MERGE:
            return
        keys = list(self._place)
        self.put(keys, self.get(keys))
        self._forget(blocks)

    def discard(self, keep: set[bytes]) -> int:
        """Delete every embedding whose digest is not in ``keep``; return how many were deleted."""
        kept = [key for key in self._place if key in keep]
        gone = len(self._place) - len(kept)
        if gone == 0:
            return 0
        blocks = {path for path, _ in self._place.values()}
        vectors = self.get(kept) if kept else None
        self._place.clear()
        if vectors is not None:
            self.put(kept, vectors)
        self._forget(blocks)
        return gone

    def _forget(self, blocks: set[Path]) -> None:
        """Remove blocks of which nothing is looked up any more."""
        for path in blocks - {path for path, _ in self._place.values()}:
            path.unlink(missing_ok=True)


def is_damaged(path: Path) -> bool:
    """Whether a block of a cache has other bytes than its name says.

    Raises:
        OSError: It cannot be read.
    """
    return _CHECKSUM.fullmatch(path.stem) is not None and file_sha256(path) != path.stem
