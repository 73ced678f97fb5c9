"""What the page asks for: JSON from outside, read into the client's own types or refused with the place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cbir.client import Crop, Fusion, ImageId, SearchOptions, Text
from cbir.web.gateway.refusal import Refusal

__all__ = ["LARGEST", "Wish", "read_wish"]

#: Bytes of the largest request: thousands of examples, far more than the server takes.
LARGEST = 2**20

_SOURCES = ("upload", "image_id", "text")


@dataclass(frozen=True)
class Wish:
    """One search.

    Attributes:
        upload: Name of the picture to search with; empty if it is another query.
        query: The query where it is no upload; None if there are examples only.
    """

    upload: str
    query: ImageId | Text | None
    options: SearchOptions = field(default_factory=SearchOptions)


def read_wish(data: bytes) -> Wish:
    """Read a search.

    Raises:
        Refusal: It is no JSON, or not of the form that is meant; the message says where.
    """
    try:
        document = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _bad("the request", "is no JSON that can be read") from error
    fields = _object(document, "the request")
    upload, query = _source(_object(fields.get("query") or {}, "query"))
    found: dict[str, Any] = {}
    for name, value in _object(fields.get("options") or {}, "options").items():
        read = _OPTIONS.get(name)
        if read is None:
            raise _bad(f"options.{name}", f"is not known; there are {', '.join(_OPTIONS)}")
        if value is not None:
            found[name] = read(value, f"options.{name}")
    return Wish(upload, query, SearchOptions(**found))  # type: ignore[typeddict-item]  # each was read by its own reader


def _source(query: Mapping[str, Any]) -> tuple[str, ImageId | Text | None]:
    given = {name: _text(value, f"query.{name}") for name, value in query.items() if value is not None}
    if unknown := [name for name in given if name not in _SOURCES]:
        raise _bad(f"query.{unknown[0]}", f"is not known; give one of {', '.join(_SOURCES)}")
    if len(given) > 1:
        raise _bad("query", f"has {' and '.join(given)}: give one of them")
    if "image_id" in given:
        return "", ImageId(given["image_id"])
    if "text" in given:
        return "", Text(given["text"])
    return given.get("upload", ""), None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _bad(place: str, what: str) -> Refusal:
    return Refusal(400, "BAD_REQUEST", f"{place} {what}")


def _object(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad(place, "must be an object")
    return value


def _text(value: object, place: str) -> str:
    if not isinstance(value, str) or not _is_unicode(value):
        raise _bad(place, "must be a text")
    return value


def _is_unicode(text: str) -> bool:
    # JSON can hold half a surrogate pair, which nothing after this could encode.
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _whole(value: object, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise _bad(place, "must be a whole number")
    return value


def _number(value: object, place: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < math.inf:
        raise _bad(place, "must be a number")
    return float(value)


def _flag(value: object, place: str) -> bool:
    if not isinstance(value, bool):
        raise _bad(place, "must be true or false")
    return value


def _texts(value: object, place: str) -> list[str]:
    if not isinstance(value, list):
        raise _bad(place, "must be a list")
    return [_text(item, f"{place}[{number}]") for number, item in enumerate(value)]


def _weights(value: object, place: str) -> dict[str, float]:
    return {_text(k, place): _number(v, f"{place}.{k}") for k, v in _object(value, place).items()}


def _columns(value: object, place: str) -> dict[str, list[str]]:
    return {_text(k, place): _texts(v, f"{place}.{k}") for k, v in _object(value, place).items()}


def _one_of(*names: str) -> Callable[[object, str], str]:
    def read(value: object, place: str) -> str:
        if _text(value, place) not in names:
            raise _bad(place, f"must be one of {', '.join(names)}")
        return str(value)

    return read


_OPTIONS: Mapping[str, Callable[[object, str], Any]] = {
    "limit": _whole,
    "min_score": _number,
    "fusion": _one_of(*Fusion),
    "weights": _weights,
    "labels": _texts,
    "exclude_labels": _texts,
    "metadata": _columns,
    "exclude_query": _flag,
    "mark_near_duplicates": _flag,
    "crop": _one_of(*Crop),
    "positive_ids": _texts,
    "negative_ids": _texts,
}
