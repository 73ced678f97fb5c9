"""Connections: one peer's do not shut others out."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import grpc
import pytest

from cbir.server.transport.connections import ConnectionGuard
from cbir.v1 import search_pb2 as pb
from cbir.v1 import search_pb2_grpc

BY_ID = pb.SearchRequest(query=pb.Query(image_id="twin"))
linux = pytest.mark.skipif(sys.platform != "linux", reason="the system does not list a process's sockets")


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 5, (source, 0))


@linux
def test_the_silent_ones_of_a_peer_go_first() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        peers = [stack.enter_context(connect(port)) for _ in range(40)]
        others = [stack.enter_context(connect(port, "127.0.0.2")) for _ in range(5)]
        accepted = [stack.enter_context(listener.accept()[0]) for _ in range(45)]
        sleep(0.05)
        talkers = (peers[0], peers[30])
        for talker in talkers:
            talker.sendall(b"x")
        guard = ConnectionGuard(10)
        guard._ports = {port}
        assert guard.look() == 30
        assert guard.shed == 30
        gone = []
        for peer in peers:
            peer.settimeout(0.01)
            try:
                gone.append(peer.recv(1) == b"")
            except TimeoutError:
                gone.append(False)
        assert sum(gone) == 30
        assert not gone[0]
        assert not gone[30]
        for other in others:
            other.settimeout(0.01)
            with pytest.raises(TimeoutError):
                other.recv(1)
        assert all(one.fileno() >= 0 for one in accepted)  # closing them is the owner's business
        # Ports that are not watched are nobody's business.
        guard._ports = {1}
        assert guard.look() == 0


@pytest.fixture
def limited_server(tiny: Any, tmp_path: Path) -> Iterator[int]:
    """A server that may open 1,024 descriptors and no more; gives its port."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))

    command = [sys.executable, "-m", "cbir.client.cli.program", "serve", str(tiny.index), "--port", "0", "--json"]
    command += ["--device", "cpu", "--runtime", "torch"]
    # As another user would: no home, a folder that may not be written, nothing of this environment but the path.
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=limit, cwd="/"
    ) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["port"]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


@linux
def test_a_thousand_idle_connections_lock_nobody_out(limited_server: int) -> None:
    """At a limit of 1,024 descriptors, by a peer that connects and says nothing; and no home, no environment."""
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connect(limited_server, "127.0.0.9"))
        begun = monotonic()
        for _ in range(3):
            with grpc.insecure_channel(f"127.0.0.1:{limited_server}") as channel:
                assert search_pb2_grpc.SearchServiceStub(channel).Search(BY_ID, timeout=30, wait_for_ready=True).hits
        assert monotonic() - begun < 30
