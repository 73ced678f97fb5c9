"""How many threads the libraries get: the one place where the cores are shared out.

OpenVINO, torch, OpenCV and the threads that decode share one machine and know nothing of one another.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Threads", "share_out", "threads"]


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
