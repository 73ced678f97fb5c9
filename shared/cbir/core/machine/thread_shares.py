"""Thread shares: how many threads each library gets, and which threads have priority.

OpenVINO, torch, OpenCV and the decoding threads use the same cores and know nothing of one another, so this is the one
place that divides the cores among them.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = [
    "NOTICED_MS",
    "Threads",
    "compute_alone",
    "give_way",
    "idle_quietly",
    "search_alone",
    "share_out",
    "step_back",
    "take_turns",
    "threads",
]

#: Milliseconds that more threads must save a query.  Whoever asks one query notices no less, and under load the other
#: cores have queries to decode and answers to write.
NOTICED_MS = 1.0
#: Added to the nice value of threads that compute for long: they get about a third of the share of other threads.
_BACK = 5
#: Seconds for which one thread of Python may keep another one waiting.
_TURN = 0.0001


@dataclass(frozen=True)
class Threads:
    """Numbers of threads; 0 leaves the choice to the library.

    Attributes:
        inference: For each member's forward pass, in OpenVINO and torch.
        images: For OpenCV, in each of the threads that decode and crop.
    """

    inference: int = 0
    images: int = 0


_current = Threads()


def threads() -> Threads:
    """The numbers that :func:`share_out` set last."""
    return _current


def share_out(wanted: Threads) -> None:
    """Set the numbers of threads: for OpenCV now, for models when they are loaded later.

    They hold for the whole process, as the libraries' own settings do, so call this where a program starts.
    """
    global _current
    _current = wanted
    if wanted.images:
        import cv2

        cv2.setNumThreads(wanted.images)


def idle_quietly() -> None:
    """Let OpenMP's threads sleep while they have no work.  Call this before torch or FAISS are imported.

    By default they spin for a while after every call, on cores that other threads of a server need.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def take_turns() -> None:
    """Let threads of Python wait at most a tenth of a millisecond for one that computes in Python, in place of five.

    For servers: what an event loop does for a call takes a fraction of a millisecond, but by Python's default it waits
    up to five for each turn while another thread works, and so does that thread for the loop.  A thread that waits is
    also woken in vain each time that the other gives up the lock for a system call, so a short wait costs least.
    """
    sys.setswitchinterval(_TURN)


def step_back() -> None:
    """Lower the priority of the calling thread, and of the threads that it starts, for good.

    For threads that compute for long, so that threads that answer, refuse and decode get a core at once.  Does nothing
    outside Linux, where priorities belong to processes.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # Some sandboxes forbid changing priorities.
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _BACK))


def give_way() -> None:
    """Compute only where no other program wants the processor: this process, and all that it starts, for good.

    On Linux by its scheduling policy for such work (``SCHED_IDLE``) and on a quarter of the cores, at least one:
    what runs on the other cores still shares caches and memory with it.  Elsewhere by the lowest priority.
    """
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        few = cores[-max(1, len(cores) // 4) :]
        for thread in Path("/proc/self/task").iterdir():
            # A thread may have ended since; some sandboxes forbid changing policies.
            with suppress(OSError):
                os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))
                os.sched_setaffinity(int(thread.name), few)
    elif hasattr(os, "nice"):
        os.nice(19)


def search_alone() -> None:
    """Let FAISS, NumPy and torch compute on the calling thread only: NumPy in the whole process, the others for it.

    In a gallery that fits the processor's caches, a search is over before a second thread has started, and the other
    cores have queries to decode and answers to write.
    """
    import threadpoolctl

    threadpoolctl.threadpool_limits(1, user_api="blas")
    compute_alone()


def compute_alone() -> Callable[[], None]:
    """Let FAISS and torch compute on the calling thread only.

    Returns:
        What sets the threads as they were; to be called on the same thread.
    """
    import faiss
    import torch

    of_torch = torch.get_num_threads()
    if _share_openmp():
        # Not by FAISS, each call of which gives up the interpreter's lock.
        if of_torch == 1:
            return _leave
        torch.set_num_threads(1)
        return lambda: torch.set_num_threads(of_torch)
    of_faiss = faiss.omp_get_max_threads()
    if of_faiss == of_torch == 1:
        return _leave
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)

    def undo() -> None:
        faiss.omp_set_num_threads(of_faiss)
        torch.set_num_threads(of_torch)

    return undo


@cache
def _share_openmp() -> bool:
    """Whether FAISS and torch have one OpenMP, and so one setting, as in most builds; else each has its own."""
    import faiss
    import torch

    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    try:
        torch.set_num_threads(before[0] + 1)
        return bool(faiss.omp_get_max_threads() == before[0] + 1)
    finally:
        faiss.omp_set_num_threads(before[0])
        torch.set_num_threads(before[1])


def _leave() -> None:
    """Nothing was changed."""
