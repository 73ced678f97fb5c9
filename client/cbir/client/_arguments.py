"""Values of a caller are of the type that the API sends; what is not is refused by its name, with the way out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat, SupportsIndex, cast

from cbir.client._errors import InvalidQuery

__all__ = ["mapping", "real", "text_of", "texts", "whole"]

_UINT32_TOP = 2**32 - 1


def whole(name: str, value: object, what: str) -> int:
    """A whole number from 1, of whatever type (NumPy has its own).

    Raises:
        InvalidQuery: It is none, or too large to be sent.
    """
    number = value.__index__() if isinstance(value, SupportsIndex) and not isinstance(value, bool) else None
    if number is None or not 1 <= number <= _UINT32_TOP:
        raise _refusal(name, value, what)
    return number


def real(name: str, value: object, what: str, reason: str = "") -> float:
    """A number of whatever type.

    Raises:
        InvalidQuery: It is none.
    """
    # Texts do not count, though float() would read some of them.
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise _refusal(name, value, what, reason)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise _refusal(name, value, what, reason) from None


def text_of(name: str, value: object) -> str:
    """A text that can be sent.

    Raises:
        InvalidQuery: It is none, or holds halves of letters (lone surrogates), which have no UTF-8.
    """
    if not isinstance(value, str):
        raise _refusal(name, value, "a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _refusal(name, value, "a text of whole letters") from None
    return value


def texts(name: str, values: str | Iterable[str] | None, reason: str = "") -> list[str]:
    """Texts; a single one is a list of one, never a list of its letters.

    Raises:
        InvalidQuery: Something else is among them.
    """
    if values is None:
        return []
    if isinstance(values, str):
        return [text_of(name, values)]
    if isinstance(values, (bytes, bytearray, Mapping)) or not isinstance(values, Iterable):
        raise _refusal(name, values, "a text or a list of texts", reason)
    found = list(values)
    for value in found:
        if not isinstance(value, str):
            raise _refusal(f"an item of {name}", value, "a text", reason or _reason(name))
        text_of(name, value)
    return found


def mapping(name: str, values: object, what: str) -> Mapping[str, Any]:
    """A mapping of names; None is an empty one.

    Raises:
        InvalidQuery: It is none.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise _refusal(name, values, f"a dictionary of names, each with {what}")
    return cast("Mapping[str, Any]", values)


def _refusal(name: str, value: object, what: str, reason: str = "") -> InvalidQuery:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return InvalidQuery(f"{name} is {shown}: give {what}", reason=reason or _reason(name))


def _reason(name: str) -> str:
    return f"BAD_{name.partition('[')[0].upper()}"
