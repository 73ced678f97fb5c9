"""The checkpoint of a run: replaced at once or not at all, and of one run only."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cbir.core.errors import EnsembleError

__all__ = ["Checkpoint", "deferred_interrupt"]


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds the state of one run.

    Attributes:
        identity: What the run is made of: recipe, network, images, teachers.
        seconds: How often it is replaced, which is the most that a kill can cost.
    """

    path: Path
    identity: str
    seconds: float = 120.0

    def load(self, device: str) -> dict[str, Any] | None:
        """The state that was saved last, None at a first start.

        Raises:
            EnsembleError: The file belongs to another run, or cannot be read.
        """
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location=device, weights_only=True)
        except Exception as error:  # torch raises errors of several kinds for what is no checkpoint
            raise EnsembleError(
                f"{self.path} is no readable checkpoint ({' '.join(str(error).split())[:100]}): remove it",
                reason="CHECKPOINT_UNREADABLE",
            ) from error
        if state.get("identity") != self.identity:
            raise EnsembleError(
                f"{self.path} was written with another recipe, network, teacher or other images: remove it or name "
                "another output folder",
                reason="OTHER_CHECKPOINT",
            )
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file."""
        partial = self.path.with_suffix(".partial")
        torch.save({**state, "identity": self.identity}, partial)
        partial.replace(self.path)


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Keep Ctrl-C from striking in the middle of a step; yields whether it was pressed.  A second one strikes at once.

    Elsewhere than in the main thread, where Python delivers signals, it changes nothing.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
