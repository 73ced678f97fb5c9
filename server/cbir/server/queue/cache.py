"""Answers to repeated queries, from memory."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["AnswerCache"]

#: What an entry takes beside its answer: its key, and its place in the table.
_OVERHEAD = 256


class AnswerCache:
    """The answers of one index version that were asked for last.  For one thread.

    Args:
        entries: Most answers; 0 turns it off.
        most_bytes: Most bytes of them.
    """

    def __init__(self, entries: int, most_bytes: int) -> None:
        self._most, self._most_bytes = entries, most_bytes
        self._answers: OrderedDict[bytes, bytes] = OrderedDict()
        self._version: str | None = None
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._answers)

    def __bool__(self) -> bool:
        """Whether it is turned on."""
        return self._most > 0

    def serve(self, version: str) -> None:
        """Forget the answers of other versions, and take those of this one from now on."""
        if version != self._version:
            self._answers.clear()
            self.bytes = 0
            self._version = version

    def get(self, version: str, key: bytes) -> bytes | None:
        """The answer to a query, None where it is not known."""
        answer = self._answers.get(key) if version == self._version else None
        if answer is None:
            self.misses += 1
        else:
            self.hits += 1
            self._answers.move_to_end(key)
        return answer

    def put(self, version: str, key: bytes, answer: bytes) -> None:
        """Keep an answer, unless another version is served by now."""
        size = len(answer) + _OVERHEAD
        if version != self._version or not self._most or size > self._most_bytes:
            return
        if (old := self._answers.pop(key, None)) is not None:
            self.bytes -= len(old) + _OVERHEAD
        self._answers[key] = answer
        self.bytes += size
        while len(self._answers) > self._most or self.bytes > self._most_bytes:
            _, oldest = self._answers.popitem(last=False)
            self.bytes -= len(oldest) + _OVERHEAD
            self.evictions += 1
