"""The values of options: texts of a command line become numbers, or a sentence says what was wrong with them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

__all__ = [
    "PICTURE_SUFFIXES",
    "amount",
    "number",
    "numbers",
    "picture_path",
    "positive",
    "seconds",
    "whole",
]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def whole(least: int | None = None, most: int | None = None) -> Callable[[str], int]:
    """The type of a whole number between bounds."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if (least is not None and value < least) or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text} is not {_range(least, most)}")
        return value

    return read


#: The type of a count: a whole number of at least 1.
positive = whole(1)


def number(
    least: float | None = None, most: float | None = None, *, above: float | None = None, what: str = "a number"
) -> Callable[[str], float]:
    """The type of a number between bounds.

    Args:
        above: A bound that it must exceed.
        what: What it is, in the complaint about a text that is no number.
    """

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        low = value > above if above is not None else least is None or value >= least
        # Written so that "nan" is refused too.
        if not (low and value == value and (most is None or value <= most)):
            limits = _range(least, most) if above is None else f"above {above:g}"
            raise argparse.ArgumentTypeError(f"{text} is not {limits}" + (f" and up to {most:g}" if above is not None
                                             and most is not None else ""))  # fmt: skip
        return value

    return read


def seconds(least: float = 0.0, most: float = 3600.0) -> Callable[[str], float]:
    """The type of a span of seconds."""
    return number(least, most, what="a number of seconds")


def numbers(one: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
    """The type of several values with commas between them."""
    return lambda text: tuple(one(part) for part in text.split(","))


def amount(text: str) -> int:
    """A whole number of at least 1 that may end in k, M or G (thousands) or Ki, Mi or Gi (1,024s)."""
    parts = re.fullmatch(r"(\d[\d_,]*)\s*(?:([kKMG])(i?))?B?", text.strip())
    if parts is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, such as 200000000, 200M or 64Mi")
    unit: int = (1024 if parts[3] else 1000) ** " KMG".index((parts[2] or " ").upper())
    value = int(re.sub(r"[_,]", "", parts[1])) * unit
    if not 1 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 1 to {2**63 - 1:,}")
    return value


def picture_path(text: str) -> Path:
    """The file of a picture that is going to be drawn; checked before any work is done."""
    path = Path(text)
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} should end in {', '.join(PICTURE_SUFFIXES)}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is in a folder that does not exist")
    return path


def _range(least: float | None, most: float | None) -> str:
    if most is None:
        return f"at least {least:g}"
    return f"from {least:g} to {most:g}" if least is not None else f"at most {most:g}"
