"""How many threads the libraries get: the one place where the cores are shared out.

OpenVINO, torch, OpenCV and the threads that decode share one machine and know nothing of one another.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass

__all__ = ["Threads", "idle_quietly", "search_alone", "share_out", "step_back", "threads"]

#: By so much the priority of those that compute for long is lower (nice values): a third of the others' share.
_BACK = 5


@dataclass(frozen=True)
class Threads:
    """Threads by what they do; 0 leaves the choice to the library.

    Attributes:
        inference: Of each member's forward pass, in OpenVINO and torch.
        images: Of OpenCV, in each of the threads that decode and crop.
    """

    inference: int = 0
    images: int = 0


_current = Threads()


def threads() -> Threads:
    """What was shared out last."""
    return _current


def share_out(wanted: Threads) -> None:
    """Set the threads of OpenCV now, and of the models that are loaded from now on.

    It holds for the whole process, as the libraries' own settings do: call it where a program starts.
    """
    global _current
    _current = wanted
    if wanted.images:
        import cv2

        cv2.setNumThreads(wanted.images)


def idle_quietly() -> None:
    """Let OpenMP's threads sleep while they have no work.  To be called before torch or FAISS are imported.

    Left alone, each library's threads spin for a while after every call, on cores that a server needs for others.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def step_back() -> None:
    """Lower the priority of the calling thread and of those that it starts, for good.

    For those that compute for long, so that those that answer, refuse and decode get a core at once.  Only where
    priorities are of threads (Linux); elsewhere nothing happens.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # Some sandboxes forbid it.
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _BACK))


def search_alone(with_torch: bool) -> None:
    """Let FAISS and NumPy (and torch) compute on the thread that calls them, from now on, in the whole process.

    A search of a gallery that fits the caches is over before a second thread has begun, and the other cores have
    queries to decode and answers to write.
    """
    import faiss
    import threadpoolctl
    import torch

    threadpoolctl.threadpool_limits(1, user_api="blas")
    faiss.omp_set_num_threads(1)
    if with_torch:
        torch.set_num_threads(1)
