"""What is to be measured, in one frozen value."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cbir.core.errors import ConfigurationError
from cbir.server.bench.server_process import serve_takes

__all__ = ["KINDS", "Plan"]

#: What queries can be.
KINDS = ("image", "embedding", "id")


@dataclass(frozen=True)
class Plan:
    """A measurement.

    Attributes:
        index: Its live version is served, and measured alone too; None: whatever ``target`` serves.
        target: A server that runs already; None: one is started.
        images: Folder or .zip of query images; None: those of the gallery, or drawn ones where their files are gone.
        embeddings: File with the vectors of queries; None: random ones, which are like nothing in the gallery.
        kinds: Of queries; the first one is used for open loops, reloads and cancellation.
        concurrency: Requests in flight of the closed loops, rising.
        seconds: A closed loop is watched for, in each round; open loops take several times as long.
        rounds: How often everything that is compared is measured in turn, so that a machine that changes its pace
            changes it for all.
        fractions: Of the measured capacity that arrive in open loops.
        arrivals: ``poisson`` or ``constant``.
        deadline: Seconds within which an answer of an open loop is good; None: 1, or 20 times the median of one in
            flight if that is longer.
        limits: Measure what the server is compared with: echo, bare engine, memory.
        reloads: How many, under load.
        reload_load: Fraction of the capacity that arrives meanwhile.
        cancel: Measure what becomes of cancelled requests.
        cached: Leave the server's cache on in a load of few images, to show what it does.
        processes: Compare one server with as many that share the cores.
        channels: Connections of the generator to each server.
        serve: Options of ``cbir serve``; what is loaded alone is loaded with them too.
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
            cache: Leave its cache of answers as it is; else it is turned off, where there is one.
        """
        options = [*self.serve, "--no-text"]
        if not cache and serve_takes("--cache-entries"):
            options += ["--cache-entries", "0"]
        return options
