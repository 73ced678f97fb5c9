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


def work(seconds: float, done: threading.Event, over: threading.Event) -> None:
    """Take so much CPU time of this thread, and stay."""
    end = thread_time() + seconds
    while thread_time() < end:
        pass
    done.set()
    over.wait(60)


def test_each_thread_counts_for_its_part() -> None:
    shares, done, over = CoreShares(os.getpid()), threading.Event(), threading.Event()
    thread = threading.Thread(target=work, args=(0.6, done, over))
    thread.start()
    assert done.wait(60)
    found = shares.read(generator_seconds=0.3)
    over.set()
    thread.join()
    # 0.6 seconds over 0.3; the system's clock ticks in hundredths.
    assert found["engine and models"] >= 1.9 * found["generator"]
    assert found["gRPC"] < found["engine and models"]


def test_a_server_elsewhere_tells_nothing() -> None:
    assert CoreShares(None).read(1.0) == {}
