"""How long a call may take and when it is tried again."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from cbir.client._errors import CbirClientError, Overloaded
from cbir.client._status import from_rpc_error

__all__ = ["Budget", "RetryPolicy"]

#: The shortest pause before another try, in seconds: a server that says 0 still needs a breath.
_SHORTEST_PAUSE = 0.01


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a call is tried again.

    Attributes:
        attempts: How often a call is made at most, 1 to 5 (gRPC makes no more than 5); 1: never again.
        first_pause: Seconds before the second try where the server named no time; doubles with each try.
        longest_pause: Bound on that pause in seconds. A time the server names is kept whatever its length.
    """

    attempts: int = 4
    first_pause: float = 0.1
    longest_pause: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= 5:
            raise ValueError(f"attempts is {self.attempts}: give 1 (never try again) to 5")

    def backoff(self, tries: int) -> float:
        """Seconds to wait after ``tries`` failures in a row, with jitter."""
        pause: float = min(self.first_pause * 2 ** (tries - 1), self.longest_pause)
        return pause * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not secrecy

    def pause(self, error: CbirClientError, tries: int, left: float) -> float | None:
        """Seconds to wait before an overloaded server is tried again, or None to give up.

        Args:
            error: What the last try ended with.
            tries: How many tries there were.
            left: Seconds until the deadline; waiting past it would only hide the reason.
        """
        if not isinstance(error, Overloaded) or error.retry_after is None or tries >= self.attempts:
            return None
        # Jitter upwards only: the server said when there will be room, and not everybody should come at once.
        pause = max(error.retry_after, _SHORTEST_PAUSE) * random.uniform(1.0, 1.2)  # noqa: S311
        return pause if pause < left else None


class Budget:
    """One call's time and tries, retries included."""

    def __init__(
        self, timeout: float, policy: RetryPolicy, target: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}: give a positive number of seconds, or math.inf to wait for ever")
        self._clock = clock
        self._end = clock() + timeout
        self._policy = policy
        self._target = target
        self._tries = 0

    def left(self) -> float | None:
        """Seconds until the deadline, as gRPC wants them: None is for ever."""
        return None if math.isinf(self._end) else max(self._end - self._clock(), 0.0)

    def pause(self, error: grpc.RpcError) -> float:
        """Return the seconds to wait before the next try, or raise what the failure means.

        Raises:
            CbirClientError: There is no use or no time to try again.
        """
        self._tries += 1
        translated = from_rpc_error(error, self._target)
        pause = self._policy.pause(translated, self._tries, self._end - self._clock())
        if pause is None:
            raise translated from error
        return pause
