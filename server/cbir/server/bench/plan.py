"""The plan of a measurement: its options as one frozen value."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cbir.core.errors import ConfigurationError
from cbir.server.bench.server_process import serve_takes

__all__ = ["KINDS", "Plan"]

#: The kinds of queries.
KINDS = ("image", "embedding", "id")


@dataclass(frozen=True)
class Plan:
    """What to measure, and how.

    Attributes:
        index: The index whose live version is served and loaded as the bare engine; None: only what ``target`` serves
            is measured.
        target: Address of a running server; None: one is started.
        images: Folder or .zip of query images; None: images of the gallery, or drawn ones where its files are gone.
        embeddings: File with query vectors; None: random ones, which resemble nothing in the gallery.
        kinds: Kinds of queries; the first one is used for open loops, reloads and cancellation.
        concurrency: Requests in flight of the closed loops, ascending.
        seconds: Measured seconds of a closed loop in each round; open loops take several times as long.
        rounds: How often everything that is compared is measured in turn, so that changes of the machine's pace affect
            all of it.
        fractions: Rates of the open loops, as fractions of the measured capacity.
        arrivals: ``poisson`` or ``constant``.
        deadline: An answer of an open loop is goodput if it comes within so many seconds; None: 1, or 20 times the
            median of one request in flight if that is longer.
        limits: Measure the limits that the server is compared with: echo server, bare engine, memory bandwidth.
        reloads: Number of reloads under load.
        reload_load: Rate of the requests meanwhile, as a fraction of the capacity.
        cancel: Measure what becomes of cancelled requests.
        cached: Also measure a load of few images with the server's cache on, to show what the cache brings.
        processes: Compare one server with this many servers that share the cores.
        channels: Connections of the generator to each server.
        generators: Processes that generate the load of the open loops, each with so many connections.
        open_seconds: Measured seconds of an open loop; None: four times those of a closed one.
        serve: Options of ``cbir serve``, for the servers and for the bare engine.
    """

    index: Path | None = None
    target: str | None = None
    images: Path | None = None
    embeddings: Path | None = None
    kinds: tuple[str, ...] = KINDS
    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    seconds: float = 3.0
    rounds: int = 2
    fractions: tuple[float, ...] = (0.7, 3.0)
    arrivals: str = "poisson"
    deadline: float | None = None
    limits: bool = True
    reloads: int = 0
    reload_load: float = 0.3
    cancel: bool = False
    cached: bool = False
    processes: int = 1
    channels: int = 1
    generators: int = 1
    open_seconds: float | None = None
    seed: int = 0
    serve: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.index is None and self.target is None:
            raise ConfigurationError("there is nothing to measure: give INDEX or --target", reason="BENCH_NOTHING")
        own_server = {
            "--reloads": self.reloads, "--cancel": self.cancel, "--cached": self.cached,
            "--processes": self.processes > 1,
        }  # fmt: skip
        for name, asked in own_server.items():
            if asked and self.target is not None:
                raise ConfigurationError(
                    f"{name} needs a server that is started for it: give INDEX without --target", reason="BENCH_TARGET"
                )
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        if self.processes > max(1, cores):
            raise ConfigurationError(
                f"--processes is {self.processes}, but there are only {cores} cores to share", reason="BENCH_PROCESSES"
            )

    def serve_options(self, *, cache: bool = False) -> list[str]:
        """Options of ``cbir serve``.

        Args:
            cache: Leave the server's cache of answers on; otherwise it is turned off, if this release has one.
        """
        options = [*self.serve, "--no-text"]
        if not cache and serve_takes("--cache-entries"):
            options += ["--cache-entries", "0"]
        return options
