"""Where each digest is: two sorted arrays, 16 bytes a digest, in place of a dictionary of Python objects.

The first eight bytes of a digest are looked up; whoever asks compares the whole digest with the one that is stored at
the place found, so that digests made to share eight bytes are told apart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["DigestIndex", "Places"]

Digests = NDArray[np.uint8]
Places = NDArray[np.int64]

#: Digests that are kept in a dictionary until they are merged into the arrays.
_RECENT = 8192


class DigestIndex:
    """Places by digest.  One thread adds; others may look up meanwhile.

    Args:
        digests_at: Gives the (n, 32) digests that are stored at (n,) places.
    """

    def __init__(self, digests_at: Callable[[Places], Digests]) -> None:
        self._digests_at = digests_at
        # Replaced and never changed, so that a thread that looks up sees the old or the new.
        self._sorted: tuple[NDArray[np.uint64], Places] = (np.empty(0, np.uint64), np.empty(0, np.int64))
        self._recent: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._recent) + len(self._sorted[1])

    def add(self, digests: Digests, places: Places) -> None:
        """Add (n, 32) digests that are not there yet, at (n,) places."""
        if len(digests) < _RECENT:
            self._recent.update(zip((digest.tobytes() for digest in digests), places.tolist(), strict=True))
            if len(self._recent) < _RECENT:
                return
            digests = np.frombuffer(b"".join(self._recent), np.uint8).reshape(-1, 32)
            places = np.fromiter(self._recent.values(), np.int64, len(self._recent))
            self._merge(digests, places)
            self._recent = {}
        else:
            self._merge(digests, places)

    def _merge(self, digests: Digests, places: Places) -> None:
        heads = _heads(digests)
        order = np.argsort(heads, kind="stable")
        heads, places = heads[order], places[order]
        known, where = self._sorted
        if len(known):
            at = np.searchsorted(known, heads)
            heads, places = np.insert(known, at, heads), np.insert(where, at, places)
        self._sorted = heads, places

    def find(self, digests: Digests) -> Places:
        """(n,) places of (n, 32) digests, -1 where there is none."""
        recent = self._recent
        found = np.full(len(digests), -1, np.int64)
        if recent:
            found[:] = [recent.get(digest.tobytes(), -1) for digest in digests]
        known, where = self._sorted
        if not len(known):
            return found
        heads = _heads(digests)
        open_ = np.flatnonzero(found < 0)
        at = np.searchsorted(known, heads[open_])
        # Mostly one round; a further one for each digest that shares its head with another.
        while len(open_):
            same = at < len(known)
            same[same] = known[at[same]] == heads[open_[same]]
            open_, at = open_[same], at[same]
            if not len(open_):
                break
            right = (self._digests_at(where[at]) == digests[open_]).all(axis=1)
            found[open_[right]] = where[at[right]]
            open_, at = open_[~right], at[~right] + 1
        return found

    def find_one(self, digest: bytes) -> int:
        """The place of one digest, -1 where there is none."""
        place = self._recent.get(digest)
        if place is not None:
            return place
        known, where = self._sorted
        head = np.frombuffer(digest, ">u8", 1)[0].astype(np.uint64)
        at = int(np.searchsorted(known, head))
        while at < len(known) and known[at] == head:
            if self._digests_at(where[at : at + 1])[0].tobytes() == digest:
                return int(where[at])
            at += 1
        return -1

    def forget(self, gone: Callable[[Places], NDArray[np.bool_]]) -> None:
        """Forget the places of which ``gone`` says so."""
        known, where = self._sorted
        kept = ~gone(where)
        self._sorted = known[kept], where[kept]
        self._recent = {d: p for d, p in self._recent.items() if not gone(np.array([p]))[0]}


def _heads(digests: Digests) -> NDArray[np.uint64]:
    return np.ascontiguousarray(digests[:, :8]).view(">u8").ravel().astype(np.uint64)
