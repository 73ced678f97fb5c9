"""The page of the commands names all that there are, with their options and settings."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from rooms import ROOT

from cbir.client.cli.configuration import VARIABLES

sys.path.append(str(ROOT / "docs"))

from commands_page import PAGE, START, all_commands, options_text

BY_HAND, _, MADE = PAGE.read_text(encoding="utf-8").partition(START)


def test_the_list_of_options_is_that_of_the_commands() -> None:
    assert options_text() == START + MADE, "docs/commands.md is old: run python docs/commands_page.py"


@pytest.mark.parametrize("name", all_commands())
def test_every_command_stands_in_the_table(name: str) -> None:
    assert re.search(rf"^\| `cbir {name}[ `]", BY_HAND, re.M)


def test_every_option_is_listed_with_its_meaning() -> None:
    # Read here in another way than where the page is made.
    commands = all_commands()
    assert {"index", "serve", "search", "list", "doctor", "completion", "web", "info", "bench search"} <= set(commands)
    for name, parser in commands.items():
        section = MADE.partition(f"### cbir {name}\n")[2].partition("\n### ")[0]
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", parser.format_usage()))
        listed = set(re.findall(r"^\| `(--[a-z-]+)", section, re.M))
        if "Connection: as of" in section:
            listed |= {
                "--target",
                "--timeout",
                "--proxy",
                "--tls",
                "--tls-ca",
                "--tls-cert",
                "--tls-key",
                "--token-file",
            }
        assert options - listed - {option for option in options if option.startswith("--no-")} == set(), name
        assert not re.findall(r"^\| `--.*` \|\s*\|$", section, re.M), f"cbir {name}: an option without a help text"


def test_every_setting_is_in_its_table() -> None:
    ours = {found for file in ROOT.glob("*/cbir/**/*.py") for found in re.findall(r"\bCBIR_[A-Z_]+\b", _text(file))}
    assert set(VARIABLES.values()) <= ours
    assert sorted(variable for variable in ours if f"`{variable}`" not in BY_HAND) == []
    assert [name for name in VARIABLES if f"`{name}`" not in BY_HAND] == []


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")
