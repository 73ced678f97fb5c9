"""Requests on their way in: bytes that have come count although their message is not whole, and none may take for ever.

gRPC hands over whole messages only, and buffers what has come of the others: a client that withholds the last byte of
many large requests fills the memory.  Its own limit, the resource quota, cannot be reached from Python.  So a call's
message is asked for once the call is here (until then flow control holds the sender back after some kilobytes), it has
to come within a time, and what each connection has sent beyond its whole messages is read off the kernel's counters.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import grpc

from cbir.core.errors import CbirError, QueryError
from cbir.server.limits import Limits
from cbir.server.queue import Admission, Lane, OverloadedError
from cbir.server.transport.wasted_bytes import WastedBytes

__all__ = ["Intake", "SlowRequestError", "received"]

#: Messages that have come by then are never looked at: nearly all of them.
_BRIEF = 0.25
_RETRY_SECONDS = 1.0
#: Connections whose whole messages are remembered.
_MOST_LEDGERS = 8192
#: What HTTP/2, headers and TLS add: to each message, and to each so many bytes.
_PER_MESSAGE, _BYTES_A_BYTE = 512, 32

# The kernel's ``struct tcp_info``, of which this is the part up to ``tcpi_bytes_received``.
_TCP_INFO = struct.Struct("128xQ")


class SlowRequestError(CbirError):
    """The request, or the next query of a stream, did not come in time."""

    def __init__(self, seconds: float, what: str) -> None:
        super().__init__(f"{what} did not come within {seconds:g} seconds: send it faster", reason="REQUEST_TOO_SLOW")


@dataclass(eq=False)
class _Reading:
    """One message that is awaited."""

    task: asyncio.Task[object]
    lane: Lane
    peer: str
    seconds: float
    what: str
    timer: asyncio.TimerHandle | None = None
    holds_room: bool = False
    refusal: CbirError | None = None


@dataclass
class _Ledger:
    """What one connection has sent in whole messages, with what was added to them."""

    settled: int = 0
    forgiven: bool = False


class Intake:
    """Reads requests.  For one event loop.

    Attributes:
        wasted: Who reads requests says here which of them came to nothing.
        cut: Reads that were cut off, by reason.

    Args:
        count: Tells the bytes that each connection has received so far, by its peer as gRPC names it; None where the
            system does not tell: every message that is slow to come then counts as the largest.
    """

    def __init__(self, limits: Limits, count: Callable[[], dict[str, int] | None] | None = None) -> None:
        self._limits, self._received = limits, count or received
        self.wasted = WastedBytes(limits.wasted_bytes)
        self._slow: dict[_Reading, None] = {}
        self._ledgers: OrderedDict[str, _Ledger] = OrderedDict()
        most = max(2.0, limits.intake_bytes // limits.max_message_bytes)
        self._room = Admission(most, limits.intake_bytes, "requests that are slow to come")
        self._watch: asyncio.TimerHandle | None = None
        self.cut: dict[str, int] = {}

    async def read(self, context: grpc.aio.ServicerContext, lane: Lane, *, stream: bool = False) -> bytes | None:
        """Read one message; None where the caller has ended its side.

        Args:
            lane: Who sends it.
            stream: It is a query of a stream, which may keep quiet for longer.

        Raises:
            SlowRequestError: It did not come in time.
            OverloadedError: Too much has come of this connection's messages, and none of them is whole.
        """
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        seconds, what = (
            (self._limits.stream_idle_seconds, "a query") if stream else (self._limits.read_seconds, "the request")
        )
        peer = context.peer()
        if wait := self.wasted.wait(peer):
            await asyncio.sleep(wait)
        reading = _Reading(task, lane, peer, seconds, what)
        reading.timer = loop.call_later(_BRIEF, self._tarries, reading)
        cancelling = task.cancelling()
        try:
            data = await context.read()
        except asyncio.CancelledError:
            if reading.refusal is not None and task.uncancel() <= cancelling:
                self.cut[reading.refusal.reason] = self.cut.get(reading.refusal.reason, 0) + 1
                raise reading.refusal from None
            raise
        finally:
            reading.timer.cancel()
            self._slow.pop(reading, None)
            if reading.holds_room:
                self._room.give_back(lane, 1, 0)
        if data is grpc.aio.EOF:
            return None
        self._settle(reading.peer, len(data))
        return bytes(data)

    async def read_one(self, context: grpc.aio.ServicerContext, lane: Lane) -> bytes:
        """Read the one message of a call.

        Raises:
            QueryError: ``BAD_MESSAGE``: there is none.
            SlowRequestError: As :meth:`read`.
            OverloadedError: As :meth:`read`.
        """
        data = await self.read(context, lane)
        if data is None:
            raise QueryError("the call came without a request: generate the client from the API", reason="BAD_MESSAGE")
        return data

    def _settle(self, peer: str, size: int) -> None:
        ledger = self._ledgers.get(peer)
        if ledger is None:
            ledger = self._ledgers[peer] = _Ledger()
            if len(self._ledgers) > _MOST_LEDGERS:
                self._ledgers.popitem(last=False)
        ledger.settled += size + size // _BYTES_A_BYTE + _PER_MESSAGE

    def _tarries(self, reading: _Reading) -> None:
        """A message has not come at once: from now on it is watched."""
        loop = asyncio.get_running_loop()
        self._slow[reading] = None
        reading.timer = loop.call_later(
            reading.seconds - _BRIEF, self._cut, reading, SlowRequestError(reading.seconds, reading.what)
        )
        if self._watch is None:
            self._look()

    def _look(self) -> None:
        """Compare what has come with what may come, as long as any message is awaited."""
        self._watch = None
        if not self._slow:
            return
        # So few that they cannot hold too much together.
        if len(self._slow) * self._limits.max_message_bytes > self._limits.intake_bytes:
            counted = self._received()
            if counted is None:
                self._take_turns()
            else:
                self._cut_the_largest(counted)
        self._watch = asyncio.get_running_loop().call_later(_BRIEF, self._look)

    def _take_turns(self) -> None:
        for reading in [reading for reading in self._slow if not reading.holds_room]:
            try:
                self._room.take(reading.lane, 1, 0, _RETRY_SECONDS)
                reading.holds_room = True
            except OverloadedError as error:
                self._cut(reading, error)

    def _cut_the_largest(self, counted: dict[str, int]) -> None:
        held: dict[str, int] = {}
        for peer in {reading.peer for reading in self._slow}:
            total = counted.get(unquote(peer), 0)
            ledger = self._ledgers.setdefault(peer, _Ledger())
            if ledger.forgiven or ledger.settled > total:
                ledger.settled, ledger.forgiven = total, False
            held[peer] = total - ledger.settled
        while sum(held.values()) > self._limits.intake_bytes:
            largest = max(held, key=lambda peer: held[peer])
            del held[largest]
            self._ledgers[largest].forgiven = True
            for reading in [reading for reading in self._slow if reading.peer == largest]:
                text = "this connection has sent too much that is not whole requests: send fewer at a time"
                self._cut(reading, OverloadedError(text, _RETRY_SECONDS))

    @staticmethod
    def _cut(reading: _Reading, refusal: CbirError) -> None:
        if reading.refusal is None:
            reading.refusal = refusal
            reading.task.cancel()


def received() -> dict[str, int] | None:
    """Bytes that each TCP connection of this process has received, by its peer as gRPC names it.

    None where the system does not tell.
    """
    if sys.platform != "linux":
        return None
    found: dict[str, int] = {}
    try:
        descriptors = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:
        return None
    for descriptor in descriptors:
        # It may be closed by now, or be one that is not connected.
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                    host, port = connection.getpeername()[:2]
                    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
                    if len(told) == _TCP_INFO.size:
                        found[_peer(host, port)] = _TCP_INFO.unpack(told)[0]
    return found


def _peer(host: str, port: int) -> str:
    """As gRPC writes it, unquoted."""
    host = host.removeprefix("::ffff:")
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
