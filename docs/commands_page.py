"""Every command and option of ``cbir``, as the second half of ``docs/commands.md`` tells them.

``python docs/commands_page.py`` writes it anew from the commands' own arguments; a test fails when it is old.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path

from cbir.client.cli.program import COMMANDS, PARTS, Command

__all__ = ["PAGE", "START", "all_commands", "options_text"]

PAGE = Path(__file__).resolve().parent / "commands.md"
#: What comes before this heading is written by hand.
START = "## Every option\n"


def all_commands() -> dict[str, argparse.ArgumentParser]:
    """Each command's words, such as ``bench serve``, and what takes its arguments, in the order of the help."""
    found: dict[str, argparse.ArgumentParser] = {}
    for name, command in COMMANDS.items():
        parser = _parser(name, command)
        inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        found.update({f"{name} {word}": one for action in inner for word, one in action.choices.items()})
        if not inner:
            found[name] = parser
    # Those of modules of their own are only named by the first word's module.
    found.update({" ".join(words): _parser(" ".join(words), command) for words, command in PARTS.items()})
    return found


def options_text() -> str:
    """The part of the page that is made."""
    told: dict[tuple[str, ...], str] = {}
    parts = [START, "Made from the commands' own `--help` by `python docs/commands_page.py`.\n"]
    for name, parser in all_commands().items():
        parts += [f"### cbir {name}\n", *_tables(name, parser, told)]
    return "\n".join(parts)


def _parser(name: str, command: Command) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"cbir {name}", add_help=False)
    importlib.import_module(command.module).add_arguments(parser)
    return parser


def _tables(name: str, parser: argparse.ArgumentParser, told: dict[tuple[str, ...], str]) -> Iterator[str]:
    """A table of the arguments; a group that another command has too is told there only."""
    rows: list[str] = []
    elsewhere: list[str] = []
    for group in parser._action_groups:
        own = tuple(
            _row(parser, action)
            for action in group._group_actions
            if action.help != argparse.SUPPRESS and action.dest != "help"
        )
        if group.title == "connection" and own in told:
            elsewhere.append(f"Connection: as of [cbir {told[own]}](#cbir-{told[own].replace(' ', '-')}).\n")
            continue
        told.setdefault(own, name)
        rows += own
    if rows:
        yield "\n".join(("| argument | |", "| --- | --- |", *rows)) + "\n"
    yield from elsewhere


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    if action.option_strings:
        value = "" if action.nargs == 0 else f" {formatter._format_args(action, _value_name(action))}"
        call = ", ".join(action.option_strings) + value
    else:
        call = formatter._format_args(action, _value_name(action))
    meaning = formatter._expand_help(action) if action.help else ""
    return f"| `{_cell(call)}` | {_cell(meaning)} |"


def _value_name(action: argparse.Action) -> str:
    if action.metavar is None and action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return str(action.metavar or action.dest.upper())


def _cell(text: str) -> str:
    """Text in a table's cell: what Markdown or HTML would take for its own is marked."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def main() -> None:
    """Write the page's second half anew."""
    by_hand = PAGE.read_text(encoding="utf-8").partition(START)[0]
    PAGE.write_text(by_hand.rstrip("\n") + "\n\n" + options_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
