"""How long a call may take, and when it is tried again."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from cbir.client._errors import CbirClientError, Overloaded
from cbir.client._options import number
from cbir.client._status import from_rpc_error

__all__ = ["Budget", "Retry"]

#: The shortest pause before another try in seconds, even if the server says 0.
_SHORTEST_PAUSE = 0.01


@dataclass(frozen=True, slots=True)
class Retry:
    """When a call is tried again.

    Attributes:
        attempts: Most tries of a call, 1 (no retry) to 5 (gRPC makes no more). A call is tried again if no server could
            be reached, if the server's transport dropped it, or after the time that an overloaded server names.
        first_pause: Seconds before the second try if the server names no time; doubled with each further try.
        longest_pause: Upper bound of that pause in seconds. A time that the server names is not bounded.
    """

    attempts: int = 4
    first_pause: float = 0.1
    longest_pause: float = 2.0

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or not 1 <= self.attempts <= 5:
            raise ValueError(f"attempts is {self.attempts!r}: give 1 (never try again) to 5")
        for name in ("first_pause", "longest_pause"):
            number(name, getattr(self, name), "a positive number of seconds", above=0)

    def backoff(self, tries: int) -> float:
        """Seconds to wait after ``tries`` failures in a row, with jitter."""
        pause: float = min(self.first_pause * 2 ** (tries - 1), self.longest_pause)
        return pause * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not secrecy

    def pause(self, error: CbirClientError, tries: int, left: float) -> float | None:
        """Seconds to wait before an overloaded server is tried again; None to give up.

        Args:
            error: The error of the last try.
            tries: How many tries there were.
            left: Seconds until the deadline; if the pause were longer, the error is raised instead of a timeout.
        """
        if not isinstance(error, Overloaded) or error.retry_after is None or tries >= self.attempts:
            return None
        # Jitter only adds: the server said when it will have room, and not all clients should come back at once.
        pause = max(error.retry_after, _SHORTEST_PAUSE) * random.uniform(1.0, 1.2)  # noqa: S311
        return pause if pause < left else None


class Budget:
    """The time and the tries that are left to one call; ``closed`` says whether the client was closed meanwhile."""

    def __init__(
        self,
        timeout: float,
        policy: Retry,
        target: str,
        closed: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        number("timeout", timeout, "a positive number of seconds, or math.inf to wait for ever", above=0)
        self._clock = clock
        self._end = clock() + timeout
        self._policy = policy
        self._target, self._closed = target, closed
        self._tries = 0

    def left(self) -> float | None:
        """Seconds until the deadline in gRPC's form: None for no deadline."""
        return None if math.isinf(self._end) else max(self._end - self._clock(), 0.0)

    def pause(self, error: grpc.RpcError) -> float:
        """Return the seconds to wait before the next try, or raise the error.

        Raises:
            CbirClientError: Trying again is of no use, or there is no time for it.
        """
        self._tries += 1
        translated = from_rpc_error(error, self._target, self._closed())
        pause = self._policy.pause(translated, self._tries, self._end - self._clock())
        if pause is None:
            raise translated from error
        return pause
