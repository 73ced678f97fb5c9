"""The program ``cbir``: finds the command, loads it, and turns its errors into sentences.

A command is a module with

- ``add_arguments(parser)``: declares its arguments;
- ``run(args) -> int``: does the work and returns the exit status;
- ``USER_ERRORS``: exceptions whose message is a sentence for the user;
- ``EXAMPLES``, where there are some: pairs of a command line and what it is for, which end the help.

Only the module of the command that is called is imported, so that the client's commands run without the dependencies of
the indexer and the server.

Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path

from cbir.client.cli.examples import EXAMPLES, FIRST_STEPS
from cbir.client.cli.installation import how_to_install
from cbir.client.cli.terminal import printable

__all__ = ["COMMANDS", "Command", "main"]


_FULL = (ENOSPC, EDQUOT)


@dataclass(frozen=True, slots=True)
class Command:
    """Where to find a command.

    Attributes:
        module: The module that implements it.
        help: One line that says what it does.
        extra: The extra of the distribution with its dependencies; None if it needs none.
    """

    module: str
    help: str
    extra: str | None = None


#: Every command, in the order of the help. To add a command, write its module and add a line here.
COMMANDS: dict[str, Command] = {
    "index": Command("cbir.indexer.commands.index", "build or update an index and publish a new version", "indexer"),
    "eval": Command("cbir.indexer.commands.eval", "measure MAP@10 of the ensemble and each member", "indexer"),
    "tune": Command("cbir.indexer.commands.tune", "choose the vote by MAP@10 and publish it", "indexer"),
    "train": Command("cbir.indexer.commands.train", "train members of an ensemble", "indexer"),
    "info": Command("cbir.indexer.commands.versions", "describe an index", "indexer"),
    "versions": Command("cbir.indexer.commands.versions", "list the versions of an index", "indexer"),
    "verify": Command("cbir.indexer.commands.versions", "check every file of an index against its checksum", "indexer"),
    "rollback": Command("cbir.indexer.commands.versions", "make an earlier version the live one", "indexer"),
    "gc": Command("cbir.indexer.commands.versions", "delete versions and cached embeddings no longer used", "indexer"),
    "dedup": Command("cbir.indexer.commands.dedup", "list near-duplicate images of an index", "indexer"),
    "serve": Command("cbir.server.commands.serve", "answer queries over gRPC", "server"),
    "bench": Command("cbir.server.commands.bench", "measure the speed of the server, the indexer, or search", "server"),
    "search": Command("cbir.client.cli.commands.search", "find the images that are most like yours"),
    "list": Command("cbir.client.cli.commands.list", "list the images of a server's gallery"),
    "web": Command("cbir.web.commands.web", "the search page, for a browser", "web"),
    "demo": Command("cbir.indexer.commands.demo", "everything at once, on sample images", "server"),
    "doctor": Command("cbir.client.cli.commands.doctor", "tell what is installed, what models run on, and why"),
    "completion": Command("cbir.client.cli.commands.completion", "print what a shell needs to complete commands"),
}


#: Commands of two words whose second word has a module of its own; the first one's module knows the others.
PARTS: dict[tuple[str, str], Command] = {
    ("bench", "index"): Command("cbir.indexer.commands.bench_index", "measure the indexer", "indexer"),
    ("bench", "search"): Command("cbir.indexer.commands.bench_search", "measure search in a large gallery", "indexer"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        argv: The arguments after the program's name; None for those of this process.

    Raises:
        SystemExit: With status 2 for wrong usage, 0 after ``--help`` and ``--version``.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            # A letter that the terminal cannot show is no reason to show nothing.
            stream.reconfigure(errors="replace")
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone.
        _forget_output()
        return 1
    except OSError as error:
        if error.errno not in _FULL:
            raise
        sentence = _sentence(error)
        _forget_output()
        return _fail(sentence)
    return status


def _run(arguments: list[str]) -> int:
    completing = os.environ.get("_ARGCOMPLETE") == "1"
    if completing:
        # The line so far stands in the environment, where the shell has put it.
        arguments = _line_so_far()
    words = [argument for argument in arguments if not argument.startswith("-")]
    name = next(iter(words), None)
    part = PARTS.get((words[0], words[1])) if len(words) > 1 else None
    command = part or COMMANDS.get(name or "")
    parser = argparse.ArgumentParser(
        prog="cbir",
        description="Find images that show the same thing.",
        formatter_class=_Help,
        epilog=_examples(FIRST_STEPS),
    )
    parser.add_argument("--version", action=_PrintVersion)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {
        key: subparsers.add_parser(key, help=one.help, description=f"{one.help[:1].upper()}{one.help[1:]}.",
                                   formatter_class=_Help)
        for key, one in COMMANDS.items()
    }  # fmt: skip
    if name is None or command is None:
        if completing:
            _complete(parser)
        parser.parse_args(arguments)
        return 2  # not reached: if there is no known command, argparse has printed help, version or usage and exited
    try:
        module = importlib.import_module(command.module)
        target = parsers[name]
        target.epilog = _examples(getattr(module, "EXAMPLES", EXAMPLES.get(name, ())))
        if part is not None:
            target = target.add_subparsers(dest="what", required=True).add_parser(words[1], description=part.help)
        module.add_arguments(target)
        if completing:
            _complete(parser)
        args = parser.parse_args(arguments)
        try:
            return int(module.run(args))
        except BrokenPipeError:
            raise  # an OSError, but not the user's mistake
        except module.USER_ERRORS as error:
            return _fail(_sentence(error) if isinstance(error, OSError) else str(error))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "cbir"):
            raise
        if completing:
            return 1
        needs = f"the {command.extra} extra" if command.extra else "its dependencies"
        way = how_to_install(command.extra)
        return _fail(f"cbir {name} needs {needs} ({missing} is not installed): {way}")


def _line_so_far() -> list[str]:
    """The words of the line that is being completed, up to the last whole one."""
    line = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT") or 10**6)]
    return line.split()[1:]


def _complete(parser: argparse.ArgumentParser) -> None:
    """Tell the shell what may follow, and end the program."""
    import argcomplete

    argcomplete.autocomplete(parser)


def _examples(examples: Iterable[tuple[str, str]]) -> str | None:
    lines = [f"  {line}\n      {what}" for line, what in examples]
    return "\n".join(("examples:", *lines)) if lines else None


def _sentence(error: OSError) -> str:
    """What went wrong with a file: which, for an error that names none is one of writing to standard output."""
    if error.strerror is None:
        return str(error)
    if error.errno in _FULL:
        return f"the disk of {error.filename or _output()} is full: free some space there, then try again"
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _output() -> str:
    """Where standard output leads, as well as this system can tell."""
    try:
        return str(Path(f"/proc/self/fd/{sys.stdout.fileno()}").readlink())
    except (OSError, ValueError):
        return "standard output"


def _forget_output() -> None:
    """Lead standard output to nowhere; otherwise Python would complain again when it flushes at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return


def _fail(sentence: str) -> int:
    sys.stderr.write(f"cbir: {printable(sentence)}\n")
    return 1


class _Help(argparse.HelpFormatter):
    """Help whose examples keep their lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            # The text goes through a "%" of argparse's before it comes here.
            return "\n".join(indent + line for line in text.splitlines())
        return super()._fill_text(text, width, indent)


class _PrintVersion(argparse.Action):
    """``--version``; reads the installed metadata only if it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *unused: object, **also_unused: object) -> None:
        from importlib import metadata

        sys.stdout.write(f"cbir {metadata.version('ensemble-cbir')}\n")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
