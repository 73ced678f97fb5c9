"""How many threads each library gets: the one place where the cores are shared out.

OpenVINO, torch, FAISS, OpenCV and the threads that decode share one machine and know nothing of one another.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

__all__ = ["Threads", "share_out", "threads"]


@dataclass(frozen=True)
class Threads:
    """Threads by library; 0 leaves the choice to it.

    Attributes:
        inference: Of a forward pass, in OpenVINO and torch.
        search: Of FAISS and of what OpenMP runs.
        images: Of OpenCV, in each of the threads that decode and crop.
    """

    inference: int = 0
    search: int = 0
    images: int = 0


_current = Threads()


def threads() -> Threads:
    """What was shared out last."""
    return _current


def share_out(wanted: Threads) -> None:
    """Set the threads of the libraries that are loaded, and of OpenVINO's models that are loaded from now on.

    Call it at the start of a program and again after models are loaded: a library that is not needed is not imported
    for it.
    """
    global _current
    _current = wanted
    if wanted.inference and (torch := sys.modules.get("torch")):
        torch.set_num_threads(wanted.inference)
    if wanted.search and (faiss := sys.modules.get("faiss")):
        faiss.omp_set_num_threads(wanted.search)
    if wanted.images and (cv2 := sys.modules.get("cv2")):
        cv2.setNumThreads(wanted.images)
