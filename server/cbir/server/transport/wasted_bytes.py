"""What connections have wasted: bytes of requests read for nothing, and how long the next one waits for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

from cbir.core.errors import ImageError, QueryError

__all__ = ["WastedBytes"]

#: Connections that are remembered.
_MOST = 8192
#: Seconds' worth of waste that costs nothing: who sends a bad image now and then does not wait.
_FREE_SECONDS = 2.0
#: Longest wait in seconds, so that a connection that many share is slow for a while, and never shut.
_LONGEST = 5.0


class WastedBytes:
    """Slows down connections whose requests come to nothing.

    A large message costs the server some milliseconds before anybody can see that it is worth nothing, and whoever
    sends one after the other would take a core.  So each connection may waste a number of bytes a second; one that
    wastes more has its next message read later, and until then flow control holds it back at its sender.

    Args:
        rate: Bytes a second that a connection may waste.
        clock: Tells seconds.
    """

    def __init__(self, rate: int, clock: Callable[[], float] = monotonic) -> None:
        self._rate, self._clock = rate, clock
        # By connection: the moment when what it wasted is worked off.
        self._paid_at: OrderedDict[str, float] = OrderedDict()

    def refused(self, peer: str, size: int, error: Exception) -> None:
        """A request of a connection was refused; that counts where the request is to blame for it.

        Args:
            peer: The connection, as gRPC names it.
            size: Bytes that were read.
        """
        if isinstance(error, (QueryError, ImageError)):
            self.left(peer, size)

    def left(self, peer: str, size: int) -> None:
        """A caller has left before the answer came, and not because his time was over."""
        if not size:
            return
        now = self._clock()
        self._paid_at[peer] = max(now, self._paid_at.pop(peer, now)) + size / self._rate
        if len(self._paid_at) > _MOST:
            self._paid_at.popitem(last=False)

    def wait(self, peer: str) -> float:
        """Seconds until the connection's next message is read."""
        paid_at = self._paid_at.get(peer)
        if paid_at is None:
            return 0.0
        left = paid_at - self._clock()
        if left <= 0:
            del self._paid_at[peer]
        return min(_LONGEST, max(0.0, left - _FREE_SECONDS))
