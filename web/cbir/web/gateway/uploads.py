"""Pictures that browsers have sent, kept for a while so that a search can be repeated with other options."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["Uploads"]


class Uploads:
    """Bytes by a name that cannot be guessed; bounded in size and time.

    Args:
        most: Most bytes of all together.  The ones used longest ago make room for new ones.
        kept: Seconds after the last use.
    """

    def __init__(self, most: int, kept: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._kept, self._clock = most, kept, clock
        # In the order of their last use, so that those to be forgotten stand at the front.
        self._found: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._found)

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._size

    def add(self, data: bytes) -> str:
        """Keep bytes and return their name."""
        name = secrets.token_urlsafe(18)
        self._found[name] = (data, self._clock())
        self._size += len(data)
        self._forget()
        return name

    def get(self, name: str) -> bytes | None:
        """What is kept under a name; None where there is nothing, or no longer."""
        self._forget()
        found = self._found.get(name)
        if found is None:
            return None
        self._found[name] = (found[0], self._clock())
        self._found.move_to_end(name)
        return found[0]

    def _forget(self) -> None:
        now = self._clock()
        while self._found:
            name, (data, used) = next(iter(self._found.items()))
            if self._size <= self._most and now - used < self._kept:
                return
            del self._found[name]
            self._size -= len(data)
