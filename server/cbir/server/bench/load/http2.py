"""One HTTP/2 connection of a load: calls as bytes, at a fraction of what a gRPC client costs.

A flood that shares the machine with the server must cost little, or it takes the cores of what it measures: a call of
``grpc.aio`` costs its process two to five times as much as one here.  Towards the server it behaves as
gRPC's clients do: it holds calls back by the limit of streams and by the windows that the server grants, in the order
in which they came, and gives them up at their deadline, told to the server if they had begun.

Frames: RFC 9113; header fields are read by ``hpack``.  With a table of size 0 equal blocks mean equal fields, so that
each block is read once.
"""

from __future__ import annotations

import asyncio
import struct
from base64 import b64decode
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, cast

import grpc
import hpack

__all__ = ["Call", "Connection"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME = struct.Struct(">BHBBI")
_SETTING, _NUMBER = struct.Struct(">HI"), struct.Struct(">I")
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_TABLE_SIZE, _MOST_STREAMS, _STREAM_WINDOW, _MOST_IN_FRAME = 1, 3, 4, 5
_CANCEL = 8
#: What gRPC makes of a stream that the server reset, by HTTP/2's error.  Source: gRPC over HTTP/2, "Errors".
_RESETS = {7: "UNAVAILABLE", 8: "CANCELLED", 11: "RESOURCE_EXHAUSTED", 12: "PERMISSION_DENIED"}
_CODES = {str(code.value[0]): code.name for code in grpc.StatusCode}
#: What the server may send without asking; it is granted again when half is used.
_ROOM = 2**30
_MOST_BLOCKS = 4096
#: A gRPC message begins with a byte that says whether it is compressed, and four with its length.
_MESSAGE = struct.Struct(">BI")


class Call:
    """One request and what becomes of it.  Times are by :func:`time.perf_counter`.

    Attributes:
        place: Number that its sender gave it.
        due: When it was to be sent.
        sent: When it was handed to the connection, which may hold it back.
        until: Its deadline.
    """

    __slots__ = ("answer", "body", "due", "over", "place", "sent", "stream", "until")

    def __init__(self, place: int, body: bytes, due: float, timeout: float) -> None:
        self.place, self.body, self.due = place, body, due
        self.sent = perf_counter()
        self.until = self.sent + timeout
        self.stream, self.over, self.answer = 0, False, b""


class _Rest:
    """What a window did not let through yet."""

    __slots__ = ("data", "window")

    def __init__(self, data: memoryview, window: int) -> None:
        self.data, self.window = data, window


class Connection(asyncio.Protocol):
    """A connection to a gRPC server without TLS.

    Args:
        method: Path of the method that all calls are of.
        ended: Called with a call, the name of its gRPC status, and the serialised answer or ``google.rpc.Status``.
    """

    def __init__(self, method: str, authority: str, ended: Callable[[Call, str, bytes], None]) -> None:
        self._told, self._out, self._buffer, self._loop = ended, bytearray(), b"", asyncio.get_running_loop()
        self._alarm: asyncio.TimerHandle | None = None
        encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._decoder.header_table_size = self._decoder.max_allowed_table_size = 0
        fields = [
            (":method", "POST"), (":scheme", "http"), (":path", method), (":authority", authority), ("te", "trailers"),
            ("content-type", "application/grpc"), ("user-agent", "cbir-bench"),
        ]  # fmt: skip
        # The first block fills the server's table, all further ones refer to it.
        self._fields = encoder.encode(fields)
        self._known_fields = encoder.encode(fields)
        self._known_blocks: dict[bytes, tuple[str, bytes] | None] = {}
        self._open: dict[int, Call] = {}
        self._waiting: deque[Call] = deque()
        self._by_deadline: deque[Call] = deque()
        self._rests: dict[int, _Rest] = {}
        self._next, self._most_streams = 1, 2**31
        self._window, self._stream_window, self._frame_size = 65_535, 65_535, 16_384
        self._received, self._block, self._block_flags = 0, b"", 0
        self._transport: asyncio.Transport | None = None
        #: Set once the server has agreed to what the connection asks for.
        self.ready: asyncio.Future[None] = self._loop.create_future()

    def ask(self, call: Call) -> None:
        """Send a call, or hold it back; nothing leaves before :meth:`flush`."""
        line = self._by_deadline
        while line and line[0].over:
            line.popleft()
        line.append(call)
        if self._alarm is None:
            self._alarm = self._loop.call_later(call.until - perf_counter(), self._expire)
        if self._transport is None:
            self._end(call, "UNAVAILABLE", b"")
            return
        self._waiting.append(call)
        self._send()

    def flush(self) -> None:
        """Write what is to be sent."""
        if self._out and self._transport is not None:
            self._transport.write(bytes(self._out))
            self._out.clear()

    def close(self) -> None:
        """Hang up."""
        if self._alarm is not None:
            self._alarm.cancel()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast("asyncio.Transport", transport)
        self._out += _PREFACE
        settings = _SETTING.pack(_TABLE_SIZE, 0) + _SETTING.pack(2, 0) + _SETTING.pack(_STREAM_WINDOW, _ROOM)
        self._frame(_SETTINGS, 0, 0, settings)
        self._frame(_WINDOW_UPDATE, 0, 0, _NUMBER.pack(_ROOM))
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        self._transport = None
        if not self.ready.done():
            self.ready.set_exception(error or ConnectionResetError("the server hung up"))
        for call in [*self._open.values(), *self._waiting]:
            if not call.over:
                self._end(call, "UNAVAILABLE", b"")
        self._open.clear()
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        data = self._buffer + data if self._buffer else data
        at, end = 0, len(data)
        while end - at >= _FRAME.size:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, at)
            begin = at + _FRAME.size
            if begin + (high << 16 | low) > end:
                break
            at = begin + (high << 16 | low)
            self._frame_came(kind, flags, stream, data[begin:at])
        self._buffer = data[at:]
        self._send()
        self.flush()

    def _expire(self) -> None:
        """Give up the calls whose deadline has passed, and come again for the next one."""
        line, now, self._alarm = self._by_deadline, perf_counter(), None
        while line and (line[0].over or line[0].until <= now):
            if not (call := line.popleft()).over:
                if call.stream:
                    self._forget(call.stream)
                    self._frame(_RST_STREAM, 0, call.stream, _NUMBER.pack(_CANCEL))
                self._end(call, "DEADLINE_EXCEEDED", b"")
        if line:
            self._alarm = self._loop.call_later(line[0].until - now, self._expire)
        self._send()
        self.flush()

    def _frame_came(self, kind: int, flags: int, stream: int, data: bytes) -> None:
        if kind == _DATA:
            self._received += len(data)
            if self._received > _ROOM // 2:
                self._frame(_WINDOW_UPDATE, 0, 0, _NUMBER.pack(self._received))
                self._received = 0
            if (call := self._open.get(stream)) is not None:
                call.answer += _unpadded(data, flags)
        elif kind == _HEADERS:
            block = _unpadded(data, flags)
            self._block, self._block_flags = block[5:] if flags & _PRIORITY else block, flags
            if flags & _END_HEADERS:
                self._fields_came(stream)
        elif kind == _CONTINUATION:
            self._block += data
            if flags & _END_HEADERS:
                self._fields_came(stream)
        elif kind == _RST_STREAM:
            if (call := self._forget(stream)) is not None:
                self._end(call, _RESETS.get(_NUMBER.unpack(data)[0], "INTERNAL"), b"")
        elif kind == _WINDOW_UPDATE:
            if stream == 0:
                self._window += _NUMBER.unpack(data)[0]
            elif (rest := self._rests.get(stream)) is not None:
                rest.window += _NUMBER.unpack(data)[0]
        elif kind == _SETTINGS:
            self._settings_came(flags, data)
        elif kind == _PING and not flags & _ACK:
            self._frame(_PING, _ACK, 0, data)

    def _fields_came(self, stream: int) -> None:
        block = self._block
        if block in self._known_blocks:
            status = self._known_blocks[block]
        else:
            if len(self._known_blocks) >= _MOST_BLOCKS:
                self._known_blocks.clear()
            status = self._known_blocks[block] = _status(self._decoder.decode(block, raw=True))
        if self._block_flags & _END_STREAM and (call := self._forget(stream)) is not None:
            code, details = status or ("UNKNOWN", b"")
            self._end(call, code, call.answer[_MESSAGE.size :] if code == "OK" else details)

    def _settings_came(self, flags: int, data: bytes) -> None:
        if flags & _ACK:
            if not self.ready.done():
                self.ready.set_result(None)
            return
        for name, value in _SETTING.iter_unpack(data):
            if name == _MOST_STREAMS:
                self._most_streams = value
            elif name == _STREAM_WINDOW:
                for rest in self._rests.values():
                    rest.window += value - self._stream_window
                self._stream_window = value
            elif name == _MOST_IN_FRAME:
                self._frame_size = value
        self._frame(_SETTINGS, _ACK, 0, b"")

    def _send(self) -> None:
        """Send what the server lets through now."""
        for stream, rest in list(self._rests.items()):
            self._data(stream, rest)
        while self._waiting and self._window > 0 and len(self._open) < self._most_streams and self._transport:
            call = self._waiting.popleft()
            if not call.over:
                self._begin(call)

    def _begin(self, call: Call) -> None:
        stream = call.stream = self._next
        self._next += 2
        self._open[stream] = call
        left = max(1, int(1000 * (call.until - perf_counter())))
        # A literal that the server does not add to its table.
        value = b"%dm" % left
        timeout = b"\x00\x0cgrpc-timeout" + bytes((len(value),)) + value
        self._frame(_HEADERS, _END_HEADERS, stream, self._fields + timeout)
        self._fields = self._known_fields
        message = _MESSAGE.pack(0, len(call.body)) + call.body
        call.body = b""
        self._data(stream, _Rest(memoryview(message), self._stream_window))

    def _data(self, stream: int, rest: _Rest) -> None:
        data = rest.data
        while data:
            size = min(len(data), self._frame_size, self._window, rest.window)
            if size <= 0:
                rest.data = data
                self._rests[stream] = rest
                return
            self._window -= size
            rest.window -= size
            self._frame(_DATA, _END_STREAM if size == len(data) else 0, stream, data[:size])
            data = data[size:]
        self._rests.pop(stream, None)

    def _frame(self, kind: int, flags: int, stream: int, data: bytes | memoryview) -> None:
        size = len(data)
        self._out += _FRAME.pack(size >> 16, size & 0xFFFF, kind, flags, stream)
        self._out += data

    def _forget(self, stream: int) -> Call | None:
        self._rests.pop(stream, None)
        return self._open.pop(stream, None)

    def _end(self, call: Call, code: str, told: bytes) -> None:
        call.over = True
        self._told(call, code, told)


def _unpadded(data: bytes, flags: int) -> bytes:
    return data[1 : len(data) - data[0]] if flags & _PADDED else data


def _status(fields: Any) -> tuple[str, bytes] | None:
    """The status among header fields, and its details; None where there is none."""
    found = {bytes(name): bytes(value) for name, value in fields}
    code = found.get(b"grpc-status")
    if code is None:
        return None
    # Sent without the padding that is asked for here; more of it does no harm.
    return _CODES.get(code.decode(), "UNKNOWN"), b64decode(found.get(b"grpc-status-details-bin", b"") + b"==")
