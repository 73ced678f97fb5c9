"""A server under test: ``cbir serve`` in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cbir.core.errors import ConfigurationError
from cbir.server.deployment import add_arguments

__all__ = ["ServerProcess", "read_metrics", "serve_takes", "server_process"]

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[^}]*\})?) (\S+)(?: \d+)?$", re.MULTILINE)


def serve_takes(option: str) -> bool:
    """Whether ``cbir serve`` of this release has an option."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return option in parser.format_help()


@dataclass(frozen=True)
class ServerProcess:
    """A server that answers.

    Attributes:
        metrics: Address of its metrics page, where it has one.
    """

    pid: int
    address: str
    version: str
    metrics: str | None = None

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all its threads since it started; nan where the system does not tell."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return float("nan")
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident_mib(self) -> float:
        """Its resident memory in MiB; nan where the system does not tell."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return float("nan")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def counters(self) -> dict[str, float]:
        """Everything on its metrics page, by name and labels; empty where it has none.  Blocks."""
        if self.metrics is None:
            return {}
        with urllib.request.urlopen(self.metrics, timeout=10) as page:  # noqa: S310 - our own server, on loopback
            return read_metrics(page.read().decode())


def read_metrics(text: str) -> dict[str, float]:
    """Values of a page in the Prometheus text format, by names with their labels as they are written."""
    return {name: float(value) for name, value in _SAMPLE.findall(text)}


@contextmanager
def server_process(
    index: Path, options: Sequence[str] = (), *, cores: Sequence[int] | None = None, metrics: bool = False
) -> Iterator[ServerProcess]:
    """Run one on a free port while the block runs.

    Args:
        options: Further ones of ``cbir serve``.
        cores: The only cores it may use; its libraries start as many threads.
        metrics: Have it serve its metrics, where this release can.

    Raises:
        ConfigurationError: ``BENCH_SERVER``: it did not start; the message tells its own.
    """
    command = [sys.executable, "-m", "cbir.client.cli", "serve", str(index), "--port", "0", "--json", *options]
    page = None
    if metrics and serve_takes("--metrics-port"):
        port = _free_port()
        command += ["--metrics-port", str(port)]
        page = f"http://127.0.0.1:{port}/metrics"
    environment = dict(os.environ)
    if cores is not None:
        environment["OMP_NUM_THREADS"] = str(len(cores))
        # An affinity outlives exec, and all threads that start later inherit it.
        pin = f"import os, sys; os.sched_setaffinity(0, {set(cores)}); os.execv(sys.argv[1], sys.argv[1:])"
        command = [sys.executable, "-c", pin, *command]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                process.wait()
                log.seek(0)
                said = (log.read().strip().splitlines() or ["nothing"])[-1]
                raise ConfigurationError(f"the server did not start; it said: {said}", reason="BENCH_SERVER")
            ready = json.loads(line)
            yield ServerProcess(process.pid, ready["address"], ready["version"], page)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])
