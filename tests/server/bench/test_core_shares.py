"""Which part of a server takes how much of the cores."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from time import thread_time

import pytest

from cbir.server.bench.core_shares import PARTS, CoreShares, part_of

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


def test_two_threads_on_one_core_wait_for_it() -> None:
    before = os.sched_getaffinity(0)
    core, done, over = {min(before)}, [threading.Event() for _ in range(2)], threading.Event()

    def held(done: threading.Event) -> None:
        os.sched_setaffinity(0, core)
        data = bytes(2**22)
        end = thread_time() + 0.4
        # Digests of long data are made without the interpreter's lock, so that both want the core.
        while thread_time() < end:
            hashlib.sha256(data).digest()
        done.set()
        over.wait(60)

    threads = [threading.Thread(target=held, args=(one,)) for one in done]
    for thread in threads:
        thread.start()
    shares = CoreShares(os.getpid())
    assert all(one.wait(60) for one in done)
    waited = shares.waited()
    over.set()
    for thread in threads:
        thread.join()
    # While one of them works, the other waits: nearly all of the time, if nothing else runs.
    assert waited["engine and models"] > 0.3
    assert set(waited) == set(PARTS)


def test_a_server_elsewhere_tells_nothing() -> None:
    assert CoreShares(None).read(1.0) == {}
    assert CoreShares(None).waited() == {}
