"""Output of the indexer's commands: progress on stderr, one JSON document on stdout."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from cbir.client.cli.argument_types import amount, positive
from cbir.core.errors import CbirError, ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

    from cbir.core.artifacts import SigningKey
    from cbir.core.search import VectorStore
    from cbir.indexer.build import Progress

__all__ = [
    "USER_ERRORS",
    "add_device_arguments",
    "add_exclude_argument",
    "add_sign_argument",
    "add_store_arguments",
    "amount",
    "positive",
    "print_json",
    "printable",
    "progress_printer",
    "signing_key",
    "stderr",
    "vectors_of",
    "write_measurement",
    "writing_to",
]


_FULL = (ENOSPC, EDQUOT)
#: In a log: fewer images than this say nothing of how many there are a second; and the longest time between two lines.
_TOO_FEW, _LONGEST_PAUSE = 20, 60.0

#: Errors that the user or the machine can cause, such as a file in place of a folder.
USER_ERRORS = (CbirError, OSError, SafetensorError)


def add_exclude_argument(parser: argparse.ArgumentParser) -> None:
    """The option of every command that looks for images in folders and archives."""
    parser.add_argument(
        "--exclude", metavar="GLOB", action="append", default=[],
        help="leave out files and folders of this name, or with a slash of this path below the source; may be repeated",
    )  # fmt: skip


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Tell of a disk that is full where it is; what is written to files that are open names no place."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        errno = getattr(error, "errno", None)
        if errno not in _FULL and not any(f"os error {number}" in str(error) for number in _FULL):
            raise
        place = getattr(error, "filename", None) or folder
        message = f"the disk of {place} is full: free some space there, then give the same command again"
        raise ConfigurationError(message, reason="DISK_FULL", path=place) from error


def printable(text: str) -> str:
    """The text with a mark in place of each control character: names of files may hold codes that a terminal obeys."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def stderr() -> Console:
    """A console on stderr, as stdout is for results."""
    # Here and below, rich is imported where it prints: help does not wait for it.
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def write_measurement(args: argparse.Namespace, measure: Callable[[Callable[[str], None]], dict[str, Any]]) -> int:
    """Measure, print the tables, and write ``results.json`` and ``bench.png`` below ``--out``."""
    import shlex

    from rich.console import Console

    from cbir.indexer.bench import draw, print_report

    console = stderr()
    if not console.is_terminal:
        console = Console(stderr=True, highlight=False, width=150)
    document = measure(lambda text: console.print(printable(text), style="dim", soft_wrap=True, markup=False))
    document["command"] = shlex.join(["cbir", *sys.argv[1:]])
    print_report(console, document)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        draw(document, args.out / "bench.png")
        console.print(f"{args.out / 'results.json'}, {args.out / 'bench.png'}", soft_wrap=True)
    if args.json:
        print_json(document)
    return 0


def print_json(document: Any) -> None:
    """Write one JSON document to stdout."""
    # What the terminal cannot show would be replaced, and the document with it be another.
    readable = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=not readable) + "\n")
    sys.stdout.flush()


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that all commands that run models have."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the models run")
    parser.add_argument(
        "--runtime", choices=("auto", "openvino", "torch"), default="auto", help="what runs them on a CPU"
    )


def add_sign_argument(parser: argparse.ArgumentParser) -> None:
    """The option of every command that publishes."""
    parser.add_argument(
        "--sign-key", type=Path, default=None, metavar="FILE",
        help="private Ed25519 key (PEM) to sign the version with, for `cbir serve --trust-key`",
    )  # fmt: skip


def signing_key(args: argparse.Namespace) -> SigningKey | None:
    """The key that ``--sign-key`` names.

    Raises:
        ConfigurationError: ``KEY_UNUSABLE`` or ``EXTRA_MISSING``.
    """
    from cbir.core.artifacts import SigningKey

    return SigningKey.read(args.sign_key) if args.sign_key else None


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that needs the vectors of an index, or changes which version is live."""
    parser.add_argument(
        "--milvus-uri", default=None, metavar="URI",
        help="where Milvus has the vectors, for indexes made with --store milvus: http://host:19530, or a path ending "
        "in .db for Milvus Lite",
    )  # fmt: skip
    parser.add_argument(
        "--milvus-token-file", type=Path, default=None, metavar="FILE", help="file that holds user:password or a key"
    )


def vectors_of(args: argparse.Namespace, index: Path) -> VectorStore:
    """The store that the options name.

    Raises:
        ConfigurationError: ``STORE_URI``, ``STORE_TOKEN`` or ``EXTRA_MISSING``.
    """
    # Imported here, so that help and wrong usage, and what knows of no Milvus, do not wait for torch.
    if args.milvus_uri is None:
        from cbir.core.search import LocalStore

        return LocalStore()
    from cbir.core.milvus import vector_store

    return vector_store(index, args.milvus_uri, args.milvus_token_file)


@contextmanager
def progress_printer() -> Iterator[Callable[[Progress], None]]:
    """Show progress: bars in a terminal, otherwise a line every few seconds."""
    console = stderr()
    if console.is_terminal:
        with _bars(console) as report:
            yield report
    else:
        yield _Lines(console)


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[Progress], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(progress: Progress) -> None:
            if progress.stage.startswith("load "):
                # While libraries draw their own bars for downloads, these must not be on the terminal.
                if progress.stage not in tasks:
                    tasks[progress.stage] = bars.add_task(progress.stage, visible=False)
                    bars.stop()
                    console.print(progress.stage, style="dim", soft_wrap=True)
                return
            bars.start()
            if progress.stage not in tasks:
                for task in tasks.values():
                    bars.update(task, visible=False)
                tasks[progress.stage] = bars.add_task(progress.stage, total=progress.total or None, rate="")
            rate = f"{progress.rate:.0f} images/s" if progress.rate else ""
            if not progress.rate and progress.seconds_left is not None:
                # Of the whole command; the bar's own estimate is of the stage.
                rate = f"all done in about {progress.seconds_left:.0f} s"
            bars.update(tasks[progress.stage], completed=progress.done, total=progress.total or None, rate=rate)

        yield report


class _Lines:
    """Prints a line for each stage, then others ever more seldom, for logs.

    The first estimates of what is left are of a machine that has just begun, and wrong by orders of magnitude: none is
    told before a stage has gone on for some seconds and done some of its work.
    """

    def __init__(self, console: Console, seconds: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._seconds, self._clock = console, seconds, clock
        self._stage, self._next, self._pause = "", 0.0, 0.0

    def __call__(self, progress: Progress) -> None:
        now = self._clock()
        if progress.stage != self._stage:
            self._stage, self._pause = progress.stage, self._seconds
            self._next = now + self._pause
            of = f" {progress.total} images" if progress.rate and progress.total else ""
            self._print(f"{progress.stage}{of}")
        elif now >= self._next and progress.done >= min(_TOO_FEW, progress.total / 50):
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._next = now + self._pause
            left = "" if progress.seconds_left is None else f"about {_span(progress.seconds_left)} left"
            rate = f"{progress.rate:.3g} images/s" if progress.rate else ""
            told = ", ".join(filter(None, (rate, left)))
            if told:
                self._print(f"{progress.stage} {progress.done}/{progress.total} ({told})")

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False)


def _span(seconds: float) -> str:
    """A span of time as one says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
