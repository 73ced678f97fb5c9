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

__all__ = ["ServerProcess", "cpu_seconds", "read_metrics", "seconds_of", "serve_takes", "server_process"]

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[^}]*\})?) (\S+)(?: \d+)?$", re.MULTILINE)


def serve_takes(option: str) -> bool:
    """Whether ``cbir serve`` of the installed release has an option."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return option in parser.format_help()


@dataclass(frozen=True)
class ServerProcess:
    """A running server.

    Attributes:
        admin: Where it takes admin calls.
        metrics: Address of its metrics page, if it has one.
    """

    pid: int
    address: str
    version: str
    admin: str
    metrics: str | None = None

    @property
    def cpu_seconds(self) -> float:
        """See :func:`cpu_seconds`."""
        return cpu_seconds(self.pid)

    @property
    def resident_mib(self) -> float:
        """Its resident memory in MiB; nan where the system does not report it."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return float("nan")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def counters(self) -> dict[str, float]:
        """All values of its metrics page, by name and labels; empty if it has none.  Blocks."""
        if self.metrics is None:
            return {}
        with urllib.request.urlopen(self.metrics, timeout=10) as page:  # noqa: S310 - our own server, on loopback
            return read_metrics(page.read().decode())


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process since it started, in seconds; nan where the system does not report it."""
    try:
        return seconds_of(Path(f"/proc/{pid}/stat").read_text())
    except OSError:
        return float("nan")


def seconds_of(stat: str) -> float:
    """CPU time in seconds that Linux's ``stat`` file of a process or of a thread tells."""
    # The name before it may hold spaces and brackets.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_metrics(text: str) -> dict[str, float]:
    """The values of a page in Prometheus text format, by names with their labels as written there."""
    return {name: float(value) for name, value in _SAMPLE.findall(text)}


@contextmanager
def server_process(
    index: Path, options: Sequence[str] = (), *, cores: Sequence[int] | None = None, metrics: bool = False
) -> Iterator[ServerProcess]:
    """Run a server on a free port while the ``with`` block runs.

    Args:
        options: Further options of ``cbir serve``.
        cores: The only cores it may use; its libraries start as many threads.
        metrics: Have it serve its metrics, if this release can.

    Raises:
        ConfigurationError: ``BENCH_SERVER``: it did not start; the message includes the server's own.
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
        # The affinity survives exec, and all threads that start later inherit it.
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
            yield ServerProcess(process.pid, ready["address"], ready["version"], ready["admin"], page)
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
