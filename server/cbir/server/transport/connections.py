"""Connections: no peer holds so many of them that others find no descriptor left.

gRPC accepts whoever comes, and has no bound for one peer.  So a thread looks over the process's sockets from time to
time, and hangs up on those that a peer has too many of, the ones first that have been silent longest.  It shuts the
socket down and leaves closing it to gRPC, which sees that the peer has gone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass

__all__ = ["ConnectionGuard"]

_EVERY = 0.5
_FOLDER = "/proc/self/fd"
#: ``tcpi_last_data_recv`` in Linux's ``struct tcp_info``: milliseconds since the last byte came.
_LAST_BYTE = 52
#: Descriptors for files, models and libraries: of the rest, that many parts may be connections of one peer.
_KEPT_FREE = 256
_PARTS = 2


@dataclass
class _Connection:
    socket: socket.socket
    peer: str
    silent: int


class ConnectionGuard:
    """Looks after the connections of some ports.  Does nothing where the system does not list a process's sockets.

    Args:
        most: Most connections of one address; fewer where the process may open few descriptors.
    """

    def __init__(self, most: int) -> None:
        self._most, self._ports = most, set[int]()
        self._closed = threading.Event()
        #: Connections that were hung up on.
        self.shed = 0

    def watch(self, ports: set[int]) -> None:
        """Begin."""
        self._ports = ports
        if ports and sys.platform == "linux":
            self._most = min(self._most, max(8, (_raised_limit() - _KEPT_FREE) // _PARTS))
            threading.Thread(target=self._run, name="cbir-connections", daemon=True).start()

    def close(self) -> None:
        """End."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(_EVERY):
            with contextlib.suppress(OSError):
                self.look()

    def look(self) -> int:
        """Hang up on what is too much; return how many that were."""
        if len(os.listdir(_FOLDER)) <= self._most:  # noqa: PTH208 - names are enough, twice a second
            return 0
        by_peer: dict[str, list[_Connection]] = defaultdict(list)
        ours: set[int] = set()
        for name in os.listdir(_FOLDER):  # noqa: PTH208
            # The list names its own descriptor, whose number the first copy gets.
            if int(name) not in ours and (found := self._connection(int(name))) is not None:
                by_peer[found.peer].append(found)
                ours.add(found.socket.fileno())
        shed = 0
        for connections in by_peer.values():
            connections.sort(key=lambda one: one.silent)
            for one in connections[self._most :]:
                with contextlib.suppress(OSError):
                    one.socket.shutdown(socket.SHUT_RDWR)
                    shed += 1
            for one in connections:
                one.socket.close()
        self.shed += shed
        return shed

    def _connection(self, number: int) -> _Connection | None:
        """A connection of ours, under a descriptor of its own, which nobody else closes meanwhile."""
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                return None
            own = socket.socket(fileno=os.dup(number))
        except OSError:
            return None
        try:
            if own.family in (socket.AF_INET, socket.AF_INET6) and own.getsockname()[1] in self._ports:
                peer = own.getpeername()[0]
                info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_BYTE + 4)
                return _Connection(own, peer, struct.unpack_from("=I", info, _LAST_BYTE)[0])
        except (OSError, IndexError, struct.error):
            pass  # it listens, or has just ended
        own.close()
        return None


def _raised_limit() -> int:
    """How many descriptors the process may open, once that is as many as it may ask for."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return soft
