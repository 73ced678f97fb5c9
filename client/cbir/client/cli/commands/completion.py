"""``cbir completion``: what a shell needs to complete commands, options and their values."""

from __future__ import annotations

import argparse
import sys

__all__ = ["EXAMPLES", "USER_ERRORS", "add_arguments", "run"]

USER_ERRORS: tuple[type[Exception], ...] = ()
EXAMPLES = (
    ("eval \"$(cbir completion bash)\"", "in ~/.bashrc; zsh likewise, in ~/.zshrc after compinit"),
    ("cbir completion fish > ~/.config/fish/completions/cbir.fish", "once"),
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell to complete in")


def run(args: argparse.Namespace) -> int:
    """Print the code for the shell."""
    from argcomplete.shell_integration import shellcode

    sys.stdout.write(shellcode(["cbir"], shell=args.shell))
    return 0
