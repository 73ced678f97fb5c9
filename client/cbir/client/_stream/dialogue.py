"""The state of a search stream, without any I/O: what to send, what to hand over, when to give up.

The threads of the synchronous client and the tasks of the asynchronous one report events to a :class:`Dialogue`, and it
tells them what to do next. It survives broken connections: queries that are unanswered are sent again over the next
one.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, NoReturn, TypeVar

import grpc

from cbir.client._conversion import NO_PICTURES, search_result
from cbir.client._display.pictures import Pictures
from cbir.client._errors import CbirClientError, DeadlineExceeded, Overloaded, Unavailable
from cbir.client._requests import Filled
from cbir.client._retry import Retry
from cbir.client._search_result import SearchResult
from cbir.client._status import from_rpc_error, from_status
from cbir.v1 import search_pb2

__all__ = ["Dialogue"]

K = TypeVar("K")


class _Asked(Generic[K]):
    """A query that has been taken and is not answered yet."""

    __slots__ = ("key", "message", "ratio", "tries")

    def __init__(
        self, key: K, message: search_pb2.SearchStreamRequest, ratio: tuple[float, float] | None = None
    ) -> None:
        self.key = key
        self.message = message
        self.ratio = ratio
        self.tries = 1


class Dialogue(Generic[K]):
    """The state of one search stream; for one thread only.

    Args:
        policy: When to try again after an overload or a broken connection.
        timeout: Longest wait for the next answer in seconds.
        target: The server's address, for messages.
        client_closed: Says whether the client was closed, which ends its calls.
        pictures: What results show their hits with.
        clock: A monotonic clock in seconds.
    """

    def __init__(
        self,
        policy: Retry,
        timeout: float,
        target: str,
        client_closed: Callable[[], bool],
        pictures: Pictures = NO_PICTURES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pictures = pictures
        self._policy = policy
        self._timeout = timeout
        self._target, self._client_closed = target, client_closed
        self._clock = clock
        self._numbers = itertools.count()
        self._pending: dict[str, _Asked[K]] = {}
        self._later: dict[str, float] = {}
        self._unsent: deque[str] = deque()
        self._answers: deque[tuple[K, SearchResult | CbirClientError]] = deque()
        self._exhausted = False
        self._connected = False
        self._closing = False
        self._handed_over = False
        self._breaks = 0
        self._reconnect_at = -math.inf
        self._quiet_since = clock()

    # Events.

    def query(self, key: K, filled: Filled) -> None:
        """There is another query to send."""
        # The caller's keys may be of any type and may repeat, so queries are numbered on the wire.
        name = str(next(self._numbers))
        message = search_pb2.SearchStreamRequest(request_id=name, request=filled.message)
        self._pending[name] = _Asked(key, message, filled.ratio)
        self._unsent.append(name)

    def refused(self, key: K, error: CbirClientError) -> None:
        """A query cannot be sent."""
        self._answers.append((key, error))

    def exhausted(self) -> None:
        """There are no more queries."""
        self._exhausted = True

    def failed(self, error: BaseException) -> NoReturn:
        """The caller's own iterable raised an error."""
        raise error

    def answer(self, response: search_pb2.SearchStreamResponse) -> None:
        """The server answered one query."""
        self._quiet_since = self._clock()
        self._breaks = 0
        asked = self._pending.get(response.request_id)
        if asked is None or response.request_id in self._later:
            return  # sent twice because a connection broke, and answered twice
        if response.WhichOneof("outcome") == "response":
            outcome: SearchResult | CbirClientError = search_result(response.response, asked.ratio, self._pictures)
        else:
            outcome = from_status(response.error, self._target)
            pause = self._policy.pause(outcome, asked.tries, self._timeout)
            if pause is not None:
                asked.tries += 1
                self._later[response.request_id] = self._clock() + pause
                return
        del self._pending[response.request_id]
        self._answers.append((asked.key, outcome))

    def closed(self, error: grpc.RpcError | None) -> None:
        """The call ended; ``error`` is None if the server ended it without one.

        Raises:
            CbirClientError: Queries are unanswered and trying again is of no use.
        """
        self._connected = False
        if not self._pending:
            return  # nothing is lost; the next query opens a new call
        if error is None:
            failure: CbirClientError = Unavailable(
                f"{self._target} ended the stream with {len(self._pending)} queries unanswered: look at its log"
            )
        else:
            failure = from_rpc_error(error, self._target, self._client_closed())
        self._breaks += 1
        dropped = isinstance(failure, Unavailable) or (isinstance(failure, Overloaded) and failure.retry_after is None)
        if dropped and self._breaks < self._policy.attempts:
            pause: float | None = self._policy.backoff(self._breaks)
        else:
            pause = self._policy.pause(failure, self._breaks, self._timeout)
        if pause is None:
            raise failure from error
        self._reconnect_at = self._clock() + pause
        self._unsent = deque(name for name in self._pending if name not in self._later)

    # What to do next.

    def take(self) -> tuple[K, SearchResult | CbirClientError] | None:
        """Return an answer to hand to the caller, if there is one."""
        if self._handed_over:
            # The time that the caller spent on the last answer is not the server's silence.
            self._quiet_since = self._clock()
        self._handed_over = bool(self._answers)
        return self._answers.popleft() if self._answers else None

    def must_connect(self) -> bool:
        """Whether a call must be opened now; if so, it counts as open from now on."""
        if self._connected or not self._unsent or self._clock() < self._reconnect_at:
            return False
        self._connected = True
        return True

    def send(self) -> list[search_pb2.SearchStreamRequest]:
        """Return the messages to send now."""
        now = self._clock()
        for name in [name for name, due in self._later.items() if due <= now]:
            del self._later[name]
            self._unsent.append(name)
        if not self._connected:
            return []
        messages = [self._pending[name].message for name in self._unsent]
        self._unsent.clear()
        if messages:
            self._quiet_since = now
        return messages

    def must_half_close(self) -> bool:
        """Whether the sending side must be closed now, as nothing more will be sent; True only once."""
        if self._closing or not (self._connected and self._exhausted) or self._pending:
            return False
        self._closing = True
        return True

    def finished(self) -> bool:
        """Whether every answer was handed to the caller and the call has ended."""
        return self._exhausted and not (self._pending or self._answers or self._connected)

    def patience(self) -> float | None:
        """Seconds after which :meth:`check` must be called if no event comes; None for never."""
        times = list(self._later.values())
        if self._unsent and not self._connected:
            times.append(self._reconnect_at)
        if self._waiting() and not math.isinf(self._timeout):
            times.append(self._quiet_since + self._timeout)
        return max(min(times) - self._clock(), 0.0) if times else None

    def check(self) -> None:
        """Check whether the server has been silent for too long.

        Raises:
            DeadlineExceeded: It has, and queries are unanswered.
        """
        if not self._waiting() or self._clock() - self._quiet_since < self._timeout:
            return
        if not self._pending:
            self._connected = False  # everything is answered: do not wait for a server that does not end the call
            return
        raise DeadlineExceeded(
            f"{self._target} sent no answer for {self._timeout:g} s while {len(self._pending)} queries waited: "
            "raise the timeout or look at the server's load"
        )

    def _waiting(self) -> bool:
        return bool(self._pending) or self._closing
