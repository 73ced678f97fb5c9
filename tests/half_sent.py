"""A client that speaks HTTP/2 frame by frame: requests that are never whole, answers that are never read."""

from __future__ import annotations

import socket
import struct
from time import monotonic

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived

_FRAME = 2**14


class RawConnection:
    """One connection to a server, without TLS.  Blocks; for use on a thread.

    Args:
        source: Loopback address to come from.

    Attributes:
        statuses: ``grpc-status`` of the calls that have ended, by stream.
        got: Bytes of answers that have come, by stream.
    """

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), source_address=(source, 0))
        self._http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._http.initiate_connection()
        self.statuses: dict[int, str] = {}
        self.got: dict[int, int] = {}
        self._flush()

    def call(self, method: str) -> int:
        """Begin a call, and send nothing but its headers."""
        stream = self._http.get_next_available_stream_id()
        headers = {
            ":method": "POST", ":scheme": "http", ":path": f"/cbir.v1.SearchService/{method}", ":authority": "test",
            "content-type": "application/grpc", "te": "trailers",
        }  # fmt: skip
        self._http.send_headers(stream, list(headers.items()))
        self._flush()
        return stream

    def send(self, sizes: dict[int, int], seconds: float = 30.0) -> int:
        """Send of each stream's message of so many bytes all but the last byte, or until the server ends the call.

        Returns:
            Bytes that went out.
        """
        left = dict(sizes)
        begun: set[int] = set()
        sent, ends = 0, monotonic() + seconds
        while left and monotonic() < ends:
            for stream in list(left):
                if stream in self.statuses:
                    del left[stream]
                    continue
                prefix = b"" if stream in begun else b"\0" + struct.pack(">I", sizes[stream])
                room = min(self._http.local_flow_control_window(stream), _FRAME)
                count = min(room - len(prefix), left[stream] - 1)
                if count > 0:
                    begun.add(stream)
                    self._http.send_data(stream, prefix + bytes(count))
                    left[stream] -= count
                    sent += count
                if left[stream] == 1:
                    del left[stream]
            self._flush()
            self.receive(0.0 if left else 0.01)
        return sent

    def ask(self, stream: int, message: bytes) -> None:
        """Send a whole message and end this side of the call."""
        self._http.send_data(stream, b"\0" + struct.pack(">I", len(message)) + message, end_stream=True)
        self._flush()

    def receive(self, seconds: float) -> None:
        """Take what comes for so long; windows are opened only by :meth:`grant`."""
        ends = monotonic() + seconds
        while True:
            self._socket.settimeout(max(0.001, ends - monotonic()))
            try:
                data = self._socket.recv(2**16)
            except (TimeoutError, BlockingIOError):
                data = None
            if data == b"":
                return
            for event in self._http.receive_data(data) if data else ():
                if isinstance(event, TrailersReceived | ResponseReceived):
                    # A call that fails before it has an answer ends with its first headers.
                    if status := dict(event.headers).get("grpc-status"):
                        self.statuses[event.stream_id] = status
                elif isinstance(event, StreamReset):
                    self.statuses.setdefault(event.stream_id, "reset")
                elif isinstance(event, StreamEnded):
                    self.statuses.setdefault(event.stream_id, "ended")
                elif isinstance(event, DataReceived):
                    self.got[event.stream_id] = self.got.get(event.stream_id, 0) + len(event.data)
            self._flush()
            if monotonic() >= ends:
                return

    def grant(self, stream: int, size: int) -> None:
        """Let the server send so many bytes more."""
        self._http.increment_flow_control_window(size)
        self._http.increment_flow_control_window(size, stream)
        self._flush()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _flush(self) -> None:
        data = self._http.data_to_send()
        if data:
            self._socket.settimeout(30)
            self._socket.sendall(data)
