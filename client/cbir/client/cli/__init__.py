"""The command line: the program ``cbir`` and its output in a terminal."""

from __future__ import annotations

from cbir.client.cli.program import COMMANDS, Command, main

__all__ = ["COMMANDS", "Command", "main"]
