"""What was computed from an image, on disk by content: nothing is embedded twice.

One folder a member fingerprint, holding blocks of safetensors: ``keys`` (n, 32) uint8 SHA-256 digests of the files and
``values`` (n, D), float16 unit vectors for embeddings.  A block appears by rename, whole or not at all, so a killed
run loses at most the block it was filling; many writers need no lock, as each writes blocks of its own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

__all__ = ["EmbeddingCache"]

_COMPACT_BLOCKS = 64
_ABANDONED_SECONDS = 3600


class EmbeddingCache:
    """The raw embeddings of one member (or other rows of numbers by content)."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder / fingerprint
        self._place: dict[bytes, tuple[Path, int]] = {}
        self._last: tuple[Path, NDArray[Any]] | None = None
        self._scan()

    def _scan(self) -> None:
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="numpy") as block:
                    keys = block.get_tensor("keys")
            except SafetensorError:
                # A block damaged by the disk costs its embeddings, not the run.
                path.unlink(missing_ok=True)
                continue
            except OSError:
                continue  # merged by another process since it was listed, or not ours to read
            for i, key in enumerate(keys):
                self._place[key.tobytes()] = (path, i)

    def __contains__(self, key: bytes) -> bool:
        return key in self._place

    def __len__(self) -> int:
        return len(self._place)

    def put(self, keys: list[bytes], values: NDArray[Any]) -> None:
        """Commit a block: 32-byte digests and their (n, D) rows, on disk when this returns."""
        if not keys:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{secrets.token_hex(8)}.safetensors"
        partial = path.with_suffix(".partial")
        digests = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 32)
        save_file({"keys": digests.copy(), "values": np.ascontiguousarray(values)}, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        for i, key in enumerate(keys):
            self._place[key] = (path, i)

    def get(self, keys: Iterable[bytes]) -> NDArray[Any]:
        """The (n, D) rows of digests that are all there, in their order.

        Raises:
            KeyError: One is not.
        """
        wanted = list(keys)
        try:
            return self._gather(wanted)
        except FileNotFoundError:
            # An indexer that ended just now merged the blocks: look again where things are.
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
        # Neighbouring images lie in one block: the one read last serves the next call.
        last = self._last
        if last is None or last[0] != path:
            last = self._last = (path, load_file(path)["values"])
        return last[1]

    def compact(self) -> None:
        """Merge many small blocks into one; call while nobody else writes."""
        with contextlib.suppress(OSError):
            for leftover in self.folder.glob("*.partial"):
                # A young one may be another process's block, about to be renamed.
                if time.time() - leftover.stat().st_mtime > _ABANDONED_SECONDS:
                    leftover.unlink()
        blocks = {path for path, _ in self._place.values()}
        if len(blocks) < _COMPACT_BLOCKS:
            return
        keys = list(self._place)
        self.put(keys, self.get(keys))
        for path in blocks:
            path.unlink(missing_ok=True)

    def discard(self, keep: set[bytes]) -> int:
        """Forget every embedding whose digest is not in ``keep`` (garbage collection); return how many went."""
        kept = [key for key in self._place if key in keep]
        gone = len(self._place) - len(kept)
        if gone == 0:
            return 0
        blocks = {path for path, _ in self._place.values()}
        vectors = self.get(kept) if kept else None
        self._place.clear()
        if vectors is not None:
            self.put(kept, vectors)
        for path in blocks:
            path.unlink(missing_ok=True)
        return gone
