"""Which part of a server takes how much of the cores: what bounds it shows there."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from cbir.core.machine import waited_seconds
from cbir.server.bench.server_process import seconds_of

__all__ = ["PARTS", "CoreShares", "part_of"]

#: Parts of a server.  Models, decoders and search have threads of several libraries, which name them as they like.
PARTS = ("event loop", "gRPC", "engine and models")
#: Begin of the names that gRPC gives its threads.
_GRPC = ("event_engine", "grpc_", "lifeguard", "timer_")


def part_of(pid: int, thread: int, name: str) -> str:
    """The part of a server that a thread belongs to: its first thread runs the event loop.

    Args:
        name: The thread's name, as the system has it.
    """
    if thread == pid:
        return "event loop"
    return "gRPC" if name.startswith(_GRPC) else "engine and models"


class CoreShares:
    """Measures what a server and those who load it take of the cores, from now on.

    Threads that end meanwhile take what they took with them; a server's stay.

    Args:
        pid: The server's process; None: it is not on this machine.
    """

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._begun, self._before, self._waits = perf_counter(), self._seconds(), self._waited()

    def read(self, generator_seconds: float) -> dict[str, float]:
        """Cores taken on average since the start, by part, and by the generator; empty where that is not known.

        Args:
            generator_seconds: CPU time that generating the load took.
        """
        shares = self._by_part(self._before, self._seconds())
        return shares | {"generator": generator_seconds / (perf_counter() - self._begun)} if shares else {}

    def waited(self) -> dict[str, float]:
        """Part of the time since the start in which a part of the server was ready to run and had no core; empty where
        that is not known.  Above 1 where several of its threads waited at the same time.
        """
        return self._by_part(self._waits, self._waited())

    def _by_part(self, before: dict[int, tuple[str, float]], now: dict[int, tuple[str, float]]) -> dict[str, float]:
        """Seconds of all threads of each part, a second since the start; empty where there are no threads."""
        took = perf_counter() - self._begun
        shares = dict.fromkeys(PARTS, 0.0) if now else {}
        for thread, (part, seconds) in now.items():
            shares[part] += (seconds - before.get(thread, (part, 0.0))[1]) / took
        return shares

    def _waited(self) -> dict[int, tuple[str, float]]:
        """By thread: its part, and the seconds for which it has waited for a core so far."""
        waited = waited_seconds(self._pid) if self._pid else {}
        return {thread: (part, waited[thread]) for thread, (part, _) in self._seconds().items() if thread in waited}

    def _seconds(self) -> dict[int, tuple[str, float]]:
        """By thread: its part, and its CPU time so far; empty where the system does not tell."""
        found = {}
        for folder in Path(f"/proc/{self._pid}/task").glob("*"):
            try:
                text = (folder / "stat").read_text()
            except OSError:
                continue  # it has just ended
            thread, name = int(folder.name), text.partition("(")[2].rpartition(")")[0]
            found[thread] = (part_of(self._pid or 0, thread, name), seconds_of(text))
        return found
