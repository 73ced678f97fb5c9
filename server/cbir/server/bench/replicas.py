"""One server process with all cores against several that share them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cbir.server.bench.load.generator import Generator, Load, Window
from cbir.server.bench.load.payloads import Payloads
from cbir.server.bench.server_process import ServerProcess, server_process
from cbir.server.bench.sweep import Level, level_figures

__all__ = ["compare_processes", "shares_of"]


def shares_of(cores: list[int], processes: int) -> list[list[int]]:
    """Divide cores among processes as evenly as possible."""
    return [cores[place::processes] for place in range(processes)]


async def compare_processes(
    index: Path,
    options: list[str],
    payloads: Mapping[str, Payloads],
    levels: list[Level],
    *,
    processes: int,
    seconds: float,
    rounds: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure the same levels with one server on all cores and with several, each pinned to its share of the cores.

    Both set-ups run at the same time and are loaded in turn, over equally many connections.

    Returns:
        For each number of processes their memory and the figures of the levels.
    """
    cores = sorted(os.sched_getaffinity(0))
    window = Window(seconds, warm=min(0.5, seconds / 4))
    with ExitStack() as running:
        setups: list[tuple[int, list[ServerProcess], dict[Level, list[Load]]]] = []
        for count in (1, processes):
            say(f"starting {count} server{'s' if count > 1 else ''} on {len(cores)} cores")
            shares = shares_of(cores, count)
            servers = [running.enter_context(server_process(index, options, cores=share)) for share in shares]
            setups.append((count, servers, {level: [] for level in levels}))
        for number in range(rounds):
            for count, servers, loads in setups:
                addresses = [server.address for server in servers]
                async with Generator(addresses, channels=processes // count) as generator:
                    for level in levels:
                        say(f"round {number + 1} of {rounds}: {count} processes, {level}")
                        loads[level].append(await generator.closed(payloads[level.kind], level.concurrency, window))
        return [
            {
                "processes": count,
                "resident_mib": sum(server.resident_mib for server in servers),
                "closed": [level_figures(level, loads[level]) for level in levels],
            }
            for count, servers, loads in setups
        ]
