"""Closed loops over a range of concurrencies, alternating with the limits that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cbir.core.errors import ConfigurationError
from cbir.server.bench.bare_process import BareProcess, Timed
from cbir.server.bench.figures.stages import mean_stages
from cbir.server.bench.figures.summary import closed_rate, latency_figures, percentile
from cbir.server.bench.load.generator import Generator, Load, Window
from cbir.server.bench.load.outcomes import Outcomes
from cbir.server.bench.load.payloads import Payloads
from cbir.server.bench.server_process import cpu_seconds

__all__ = ["Level", "Sweep", "bare_figures", "level_figures", "run_sweep"]


@dataclass(frozen=True)
class Level:
    """One closed loop: kind of query, requests in flight and mode.

    Attributes:
        mode: ``unary`` or ``stream``.
        echo: Whether it goes to the echo server.
    """

    kind: str
    concurrency: int
    mode: str = "unary"
    echo: bool = False

    def __str__(self) -> str:
        where = "echo, " if self.echo else ""
        return f"{where}{self.kind}, {self.mode}, {self.concurrency} in flight"


@dataclass
class Sweep:
    """The measurements of all rounds."""

    loads: dict[Level, list[Load]] = field(default_factory=dict)
    server_seconds: dict[Level, float] = field(default_factory=dict)
    bare: dict[str, list[Timed]] = field(default_factory=dict)

    def figures(self) -> list[dict[str, Any]]:
        """The figures of every closed loop."""
        return [level_figures(level, loads, self.server_seconds.get(level)) for level, loads in self.loads.items()]


async def run_sweep(
    steps: Sequence[Level | str],
    payloads: Mapping[str, Payloads],
    generator: Generator,
    echo: Generator | None,
    bare: BareProcess | None,
    processes: tuple[int | None, int | None],
    seconds: float,
    rounds: int,
    say: Callable[[str], None],
) -> Sweep:
    """Measure all steps in turn, in each of several rounds.

    Args:
        steps: Closed loops, and parts of the bare engine (:data:`cbir.server.bench.bare_process.PARTS`).
        generator: Sends to the server.
        echo: Sends to the echo server.
        processes: Of the server and of the echo server, whose CPU time is measured; None: it is not on this machine.
        seconds: Seconds of a closed loop; parts of the bare engine take half of it.
    """
    sweep = Sweep()
    window = Window(seconds, warm=min(0.5, seconds / 4))
    for number in range(rounds):
        for level in steps:
            if isinstance(level, str):
                say(f"round {number + 1} of {rounds}: bare {level}")
                assert bare is not None
                sweep.bare.setdefault(level, []).append(bare.measure(level, seconds / 2))
                continue
            say(f"round {number + 1} of {rounds}: {level}")
            sender = echo if level.echo else generator
            assert sender is not None
            process = processes[level.echo]
            before = cpu_seconds(process) if process else 0.0
            run = sender.streamed if level.mode == "stream" else sender.closed
            load = await run(payloads[level.kind], level.concurrency, window)
            sweep.loads.setdefault(level, []).append(load)
            if process:
                spent = cpu_seconds(process) - before
                sweep.server_seconds[level] = sweep.server_seconds.get(level, 0.0) + spent
    return sweep


def level_figures(level: Level, loads: Sequence[Load], server_seconds: float | None = None) -> dict[str, Any]:
    """Rate, latencies, stages and costs of a closed loop, over all rounds."""
    outcomes = Outcomes.merged([load.outcomes for load in loads])
    requests = sum(load.requests for load in loads)
    rate = closed_rate(outcomes, level.concurrency)
    if not rate > 0:
        why = ", ".join(outcomes.errors()) or "they took too long"
        raise ConfigurationError(
            f"nothing can be told of {level}: no place in it ended two requests ({why}): use more --seconds or "
            "lower --concurrency",
            reason="BENCH_TOO_SLOW",
        )
    latencies = outcomes.latencies[outcomes.answered]
    figures: dict[str, Any] = {
        "kind": level.kind,
        "mode": level.mode,
        "concurrency": level.concurrency,
        "per_second": rate,
        **latency_figures(latencies),
        "errors": outcomes.errors(),
        "generator_cpu_ms_each": 1000 * sum(load.generator_seconds for load in loads) / requests,
    }
    if server_seconds is not None:
        figures["server_cpu_ms_each"] = 1000 * server_seconds / requests
    if level.mode == "unary" and not level.echo:
        figures["stages"] = mean_stages([reply for load in loads for reply in load.replies])
    return figures


def bare_figures(bare: Mapping[str, Sequence[Timed]], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Rates and latencies of the parts, and the milliseconds that reading all vectors from memory once takes."""
    figures: dict[str, Any] = {**facts}
    for part, rounds in bare.items():
        timed = Timed.merged(rounds)
        if part == "read_memory":
            best = timed.each / percentile(timed.calls, 10)
            figures["read_gb_per_second"] = best / 1e9
            figures["search_floor_ms"] = 1000 * facts["matrix_bytes"] / best
        else:
            figures[part] = {
                "per_second": timed.per_second, "p50_ms": 1000 * percentile(timed.calls, 50), "each": timed.each,
                "core_ms_each": 1000 * timed.core_seconds_each,
            }  # fmt: skip
    return figures
