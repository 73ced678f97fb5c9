"""The checkpoint of a training run: replaced atomically, and accepted by the run that wrote it only."""

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
        identity: Hash of what the run is made of: recipe, network, images, teachers.
        seconds: Seconds between two saves: the most training time that a killed process loses.
    """

    path: Path
    identity: str
    seconds: float = 120.0

    def load(self, device: str) -> dict[str, Any] | None:
        """The state that was saved last; None if there is no checkpoint yet.

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
    """Hold back Ctrl-C, so that it does not interrupt a training step; a second one interrupts at once.

    Outside the main thread, where Python delivers no signals, this changes nothing.

    Yields:
        A function that says whether Ctrl-C was pressed.
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
