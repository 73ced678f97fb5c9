"""Admission: a bounded number of queries is let in; the others are told when to come again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cbir.core.errors import CbirError

__all__ = ["Admission", "NotReadyError", "OverloadedError", "Pace"]

_SHORTEST_RETRY = 0.05
_LONGEST_RETRY = 60.0


class OverloadedError(CbirError):
    """The queue is full.

    Attributes:
        retry_after: Seconds until the work that waits now should be done.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, reason="OVERLOADED", retry_after=f"{retry_after:.3f}s")
        self.retry_after = retry_after


class NotReadyError(CbirError):
    """No index is loaded yet, or the server is stopping."""


class Pace:
    """How long a stage takes for one image lately: a moving average that follows the last hundred or so."""

    def __init__(self, seconds_each: float) -> None:
        self.seconds_each = seconds_each

    def add(self, seconds: float, count: int = 1) -> None:
        """Note that ``count`` images took ``seconds`` together."""
        keep = 0.98**count
        self.seconds_each = keep * self.seconds_each + (1 - keep) * seconds / count


class Admission:
    """Counts what is admitted and not yet answered.  For one event loop.

    Args:
        most: Most of them at once.
        most_bytes: Most bytes of them at once; one alone may exceed it.
        what: Their name in the refusal, in the plural.
    """

    def __init__(self, most: int, most_bytes: int, what: str) -> None:
        self._most, self._most_bytes, self._what = most, most_bytes, what
        self.admitted = 0
        self.admitted_bytes = 0
        self.refused = 0

    @contextmanager
    def admit(self, size: int, seconds_each: float) -> Iterator[None]:
        """Hold a place while the block runs.

        Args:
            size: Bytes that are held.
            seconds_each: What one takes lately.

        Raises:
            OverloadedError: No place is free.
        """
        full = self.admitted >= self._most
        if full or (self.admitted and self.admitted_bytes + size > self._most_bytes):
            self.refused += 1
            held = f"{self.admitted} {self._what}" if full else f"{self.admitted_bytes:,} bytes of {self._what}"
            wait = min(max(self.admitted * seconds_each, _SHORTEST_RETRY), _LONGEST_RETRY)
            raise OverloadedError(f"the server is busy with {held}: try again in {wait:.2f} seconds", wait)
        self.admitted += 1
        self.admitted_bytes += size
        try:
            yield
        finally:
            self.admitted -= 1
            self.admitted_bytes -= size
