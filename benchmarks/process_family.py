"""What a process and those that it started hold.  Linux only: it reads /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Held:
    """What a server and the processes that it started hold at one moment."""

    mib: float
    descriptors: int
    threads: int
    processes: int


def family(pid: int) -> Iterator[int]:
    """A process and all that it started."""
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def held(pid: int) -> Held:
    """What it holds now; a process that ends while it is counted does not count."""
    pages = descriptors = threads = processes = 0
    for one in family(pid):
        with suppress(OSError):
            pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
            descriptors += sum(1 for _ in Path(f"/proc/{one}/fd").iterdir())
            threads += sum(1 for _ in Path(f"/proc/{one}/task").iterdir())
            processes += 1
    return Held(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, descriptors, threads, processes)
