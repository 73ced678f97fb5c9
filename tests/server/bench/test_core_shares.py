"""Which part of a server takes how much of the cores."""

from __future__ import annotations

import os
import sys
import threading
from time import thread_time

import pytest

from cbir.server.bench.core_shares import CoreShares, part_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the CPU time of a process's threads")


@pytest.mark.parametrize(
    ("thread", "name", "part"),
    [
        (7, "cbir", "event loop"), (8, "cbir", "engine and models"), (8, "event_engine", "gRPC"),
        (9, "grpc_global_tim", "gRPC"), (9, "lifeguard", "gRPC"), (9, "a name (of 2)", "engine and models"),
    ],
)  # fmt: skip
def test_parts_by_thread(thread: int, name: str, part: str) -> None:
    assert part_of(7, thread, name) == part


def work(seconds: float) -> None:
    """Take so much CPU time of this thread."""
    end = thread_time() + seconds
    while thread_time() < end:
        pass


def test_each_thread_counts_for_its_part() -> None:
    shares = CoreShares(os.getpid())
    thread = threading.Thread(target=work, args=(0.6,))
    thread.start()
    thread.join()
    found = shares.read(generator_seconds=0.3)
    # 0.6 seconds over 0.3; the system's clock ticks in hundredths.
    assert found["engine and models"] >= 1.9 * found["generator"]
    assert found["gRPC"] < found["engine and models"]


def test_a_server_elsewhere_tells_nothing() -> None:
    assert CoreShares(None).read(1.0) == {}
