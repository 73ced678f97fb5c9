"""Text that reaches a terminal: names and messages come from outside, and may hold codes that a terminal obeys."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """The text with a mark in place of each control character."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
